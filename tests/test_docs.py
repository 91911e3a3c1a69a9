"""What the documentation says is true: its commands exist, its links lead somewhere, its tables are the code's."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from detsearch_cli import parts
from detsearch_cli.cli.commands import app
from detsearch_cli.detectors.base import Detector
from detsearch_cli.recipe import Recipe, Slot

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
PAGES += [ROOT / "examples" / "README.md"] if (ROOT / "examples" / "README.md").is_file() else []
SCRIPTS = sorted((ROOT / "examples").glob("*.sh"))
COMMAND: Any = typer.main.get_command(app)

# What text in angle brackets or capitals stands for is the reader's, as are these.
READERS = ("studies/", "runs/", "path/", "final/", "new/", "folder/", "set/", "my_")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fences(text: str) -> list[str]:
    """The contents of the fenced blocks that are shell or plain."""
    return re.findall(r"^```(?:bash|sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def commands(script: str) -> list[list[str]]:
    """The `detsearch ...` command lines of a shell text, NAME="value" filled in, without the program's name."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", script.replace("\\\n", " "))
    values = re.findall(r'^(\w+)="?([^"\n]*(?:\n[^"\n]*)*?)"?$', text, re.MULTILINE)
    values += re.findall(r"\bfor (\w+) in (\S+)", text)
    for name, value in values:
        text = re.sub(rf"\$\{{?{name}\b\}}?", " ".join(value.split()), text)
    found = []
    for line in text.splitlines():
        for part in re.split(r"&&|\|\||[;|]", line):
            words = part.split()
            if "detsearch" in words[:2]:  # `if detsearch ...`, `! detsearch ...`
                rest = part[part.index("detsearch") :]
                found.append(shlex.split(re.split(r"\s[0-9]?>", rest)[0], comments=True)[1:])
    return found


def parse(words: list[str]) -> None:
    """Let the real command read its arguments, without running it. Raises what a user would be told."""
    command, rest = COMMAND, words
    while hasattr(command, "commands") and rest and rest != ["--help"]:
        command, rest = command.commands[rest[0]], rest[1:]
    if rest not in ([], ["--help"]) or not hasattr(command, "commands"):
        with command.make_context(command.name, list(rest)):
            pass


def documented() -> Iterator[Any]:
    for page in PAGES:
        for words in [w for block in fences(page.read_text(encoding="utf-8")) for w in commands(block)]:
            if words[0] == "rate":  # the method that docs/extend.md tells how to write
                continue
            yield pytest.param(words, id=f"{name_of(page)}: {' '.join(words)[:60]}")
    for script in SCRIPTS:
        for words in commands(script.read_text(encoding="utf-8")):
            yield pytest.param(words, id=f"{name_of(script)}: {' '.join(words)[:60]}")


@pytest.mark.parametrize("words", documented())
def test_every_command_line_is_one_the_program_takes(words: list[str]) -> None:
    parse(words)


def test_the_check_of_command_lines_notices_what_does_not_exist() -> None:
    for wrong in (["trian"], ["train", "--epoch", "3"], ["eval", "--resamples", "many"], ["predict"]):
        with pytest.raises(Exception, match=r"trian|No such option|valid integer|Missing"):
            parse(wrong)
    assert commands("X=1 && detsearch train \\\n  --epochs 3 # short\n") == [["train", "--epochs", "3"]]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_named_in_the_text_exist(page: Path) -> None:
    known = {
        option
        for command in every_command()
        for p in command.params
        for option in [*p.opts, *p.secondary_opts]
    }
    for script in (ROOT / "benchmarks").glob("*.py"):
        known |= set(re.findall(r'add_argument\("(--[\w-]+)"', script.read_text(encoding="utf-8")))
    for code in re.findall(r"`([^`\n]+)`", without_fences(page.read_text(encoding="utf-8"))):
        words = code.split()
        if words[0] == "detsearch" and len(words) > 1 and words[1].islower():
            command = COMMAND
            for word in words[1:]:
                if not hasattr(command, "commands") or not word.isalpha() or word.isupper():
                    break
                assert word in command.commands, f"`{code}`: no such command"
                command = command.commands[word]
        if words[0] in ("detsearch", "train", "search", "eval") or code.startswith("--"):
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
                assert option in known | {"--help"}, f"`{code}`: no command has {option}"


def every_command(command: Any = COMMAND) -> Iterator[Any]:
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from every_command(inner)


def anchors(page: Path) -> set[str]:
    """The fragments GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_fences(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} does not exist"
        if fragment:
            assert fragment in anchors(file), f"{target}: {name_of(file)} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_of_the_project_named_in_a_page_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"(?<![\w./{*-])((?:[\w.-]+/)+[\w.-]+\.(?:py|sh|md|yaml|toml))\b", text):
        if f"{path}`:\n\n```python" in text:
            continue  # a file that the page tells how to write
        if path.startswith(READERS) or re.search(r"[A-Z]{2}", path.split("/")[0]) or "NAME" in path:
            continue
        places = (ROOT, ROOT / "detsearch_cli", page.parent)
        assert any((place / path).exists() for place in places), f"{path} is named but does not exist"


def shown(value: Any) -> str:
    """A default as the tables write it: YAML."""
    if value is None:
        return "null"
    if isinstance(value, Slot):
        return str(value.name)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(shown(v) for v in value)}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def rows(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The lines of the table of a model's fields; sections of a recipe have tables of their own."""
    return [
        f"| `{prefix}{key}` | `{shown(field.default)}` | {field.description} |"
        for key, field in model.model_fields.items()
        if not is_section(field.annotation)
    ]


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation is not Slot


def table(text: str, heading: str) -> list[str]:
    """The rows of the table that follows a line that starts so, without its head."""
    lines = iter(text.splitlines())
    assert any(line.startswith(heading) for line in lines), f"no line starts with {heading!r}"
    found: list[str] = []
    for line in lines:
        if line.startswith("|"):
            found.append(line)
        elif found or line.startswith(("#", "**`")):
            break
    return found[2:]


RECIPE = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")


def test_the_table_of_top_level_keys_is_the_recipes() -> None:
    assert table(RECIPE, "## Every key") == rows(Recipe)


@pytest.mark.parametrize(
    "section", [key for key, field in Recipe.model_fields.items() if is_section(field.annotation)]
)
def test_the_table_of_a_section_is_the_recipes(section: str) -> None:
    model: Any = Recipe.model_fields[section].annotation
    assert table(RECIPE, f"### `{section}`") == rows(model, f"{section}.")
    start = RECIPE.index(f"### `{section}`")
    assert RECIPE[start:].splitlines()[2] == " ".join(model.__doc__.split()), "not the section's own words"


PARTS = [
    (package, name)
    for package in ("detectors", "slots.priors", "slots.assigners", "slots.losses")
    for name in parts.names(package)
]


@pytest.mark.parametrize(("package", "name"), PARTS)
def test_the_options_of_a_part_are_its_own(package: str, name: str) -> None:
    heading = f"**`{name}`**: {parts.summary(package, name)}"
    section = {"detectors": "detector", "slots.assigners": "assign", "slots.losses": "loss"}.get(package)
    text = RECIPE[RECIPE.index(f"### `{section or 'priors'}`", RECIPE.index("## The slots")) :]
    assert heading in text
    base: type[Any] = Detector if package == "detectors" else parts.Part
    found: Any = parts.find(package, name, base)
    found = getattr(found, "Options", found)
    if found.model_fields:
        for written, own in zip(table(text, heading), rows(found), strict=True):
            # an option without a description in the code has one in the page at least
            assert written == own or (own.endswith(" None |") and written.startswith(own[:-6]))
    else:
        assert "No options." in text[text.index(heading) :].split("**`")[1].split("###")[0]


def test_the_tables_of_choices_name_every_part() -> None:
    search = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    formats = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    for name in parts.names("search.samplers"):
        assert f"| `{name}` |" in search
    for name in parts.names("search.executors"):
        assert name in search
    for name in parts.names("data.formats"):
        assert f"| [`{name}`](#" in formats
    for name in (*parts.names("data.embedded"), "voc07"):
        assert f"`{name}`" in formats
    assert RECIPE.count("| `retinanet` |") == 1


def test_the_list_of_defects_is_the_codes() -> None:
    from detsearch_cli.data import checks, leaks
    from detsearch_cli.data.images import conversion

    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    kinds = {v for k, v in vars(checks).items() if k.isupper() and isinstance(v, str)}
    assert len(kinds) >= 15
    converted = {conversion(mode) for mode in ("L", "1", "LA", "P", "RGBA", "I;16", "I", "F", "RGB;16")}
    kinds |= {found[0] for found in converted if found} | {leaks.TWICE, leaks.ACROSS}
    for kind in sorted(kinds):
        assert f"`{kind}`" in text, f"docs/formats.md does not tell what is done about {kind!r}"


def test_the_recipe_key_examples_in_yaml_are_valid() -> None:
    import yaml

    from detsearch_cli.recipe import validate

    blocks = [
        block
        for page in PAGES
        for block in re.findall(
            r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
    ]
    assert blocks
    for block in blocks:
        validate(yaml.safe_load(block))


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the files that docs/extend.md tells how to write."""
    root = tmp_path_factory.mktemp("extended")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("detsearch_cli", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", root)
    text = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    blocks = re.findall(r"`([\w/]+\.py)`:\n\n```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for name, code in blocks:
        before = (root / name).read_text(encoding="utf-8") + "\n\n" if (root / name).exists() else ""
        (root / name).write_text(before + code, encoding="utf-8")
    return root


def in_copy(root: Path, *arguments: str) -> None:
    """Run Python there, as a user of that checkout would."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_parts_of_the_extension_page_pass_the_contract_tests(extended: Path) -> None:
    contracts = (
        "slots/test_assigners_contract",
        "search/test_contract_samplers",
        "data/test_contract_formats",
    )
    files = [f"tests/{name}.py" for name in contracts]
    in_copy(extended, "-m", "pytest", "-o", "addopts=", "-q", "-k", "center or climb or boxes_csv", *files)


def test_the_parts_of_the_extension_page_work_together_in_a_search(extended: Path) -> None:
    in_copy(
        extended,
        "-c",
        "from pathlib import Path; from tests.data.samples import boxes_csv as b; b(Path('set'))",
    )
    search = (
        "assign search --detector fcos --backbone tiny --data set --epochs 1 --device cpu --image-size 64"
    )
    small = "--batch-size 2 --set neck.channels=16 --set head.convs=1 --set assign=center --bins 1"
    command = f"{search} {small} --sampler climb --trials 1 --name s --out studies --val-fraction 0.5"
    in_copy(extended, "-m", "detsearch_cli.cli.app", *command.split())
    assert (extended / "studies" / "s" / "best.yaml").is_file()


def test_the_method_of_the_extension_page_is_a_command(extended: Path) -> None:
    program = "import sys; from detsearch_cli.cli.app import main; sys.argv[1:] = {}.split(); main()"
    small = "--detector fcos --backbone tiny --data shapes:images=8,val=4,test=4,size=64 --epochs 1 --image-size 64"
    search = f"rate search {small} --device cpu --batch-size 4 --set neck.channels=16 --set head.convs=1 --trials 1"
    in_copy(extended, "-c", program.format(repr(f"{search} --highest 0.05 --name rate --out studies")))
    assert (extended / "studies" / "rate" / "best.yaml").is_file()


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a path of one machine", r"(?<![\w.$}<])/(?:work|root|home|Users)/\w"),
        (
            "a package registry",
            r"pypi\.(?:org|python)|python" + r"hosted|index-" + r"url|npmjs|anaconda\.org",
        ),
    ],
)
def test_no_tracked_file_names(what: str, pattern: str) -> None:
    here = Path(__file__).resolve()
    for path in tracked():
        if path.is_file() and path != here:
            found = re.search(pattern, path.read_bytes().decode("utf-8", "replace"))
            assert found is None, f"{name_of(path)} names {what}: {found and found[0]}"
