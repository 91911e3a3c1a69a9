"""A method is one file: with nothing else touched it is in --help, searches, resumes, is compared, shown and reported."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from detsearch_cli import discovery
from detsearch_cli.cli import app as cli
from detsearch_cli.cli import commands
from detsearch_cli.cli.methods import group
from detsearch_cli.methods.base import load_method, method_class, methods
from detsearch_cli.search.study import open_study
from tests.cli.small import ENVIRONMENT, SMALL
from tests.methods.added.program import add

PACKAGE = Path(discovery.__file__).parent
FAST = [*SMALL, "--set", "optim.name=adamw", "--kernels", "off"]
# a baseline that does not move, and every score told, so that a candidate is surely better
LEARNING = [
    *FAST,
    "--epochs",
    "6",
    "--batch-size",
    "4",
    "--set",
    "optim.lr=1e-9",
    "--set",
    "test.score_threshold=0",
]


@pytest.fixture(scope="module", autouse=True)
def _added() -> Iterator[None]:
    """The methods of tests/methods/added in this process, and their commands."""
    import detsearch_cli.methods

    before = list(detsearch_cli.methods.__path__)
    add()
    for name in ("rate", "wording"):
        commands.app.add_typer(group(name, method_class(name)))
    yield
    del commands.app.registered_groups[-2:]
    detsearch_cli.methods.__path__[:] = before
    discovery.forget()


def program(folder: Path, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command given in this folder."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(list(words))
    return code, out.getvalue(), err.getvalue()


def done(folder: Path, *words: str) -> str:
    code, out, err = program(folder, *words)
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rate")
    options = ["--highest", "0.1", "--refused-above", "0.03"]
    search = ["rate", "search", *LEARNING, *options, "--trials", "2", "--name", "s", "--out", "."]
    told = json.loads(done(root, *search, "--json"))
    assert told["trials"] == 3 and told["refused"] >= 1
    return root / "s"


def test_an_added_method_is_in_the_help_with_its_own_options(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.methods.added.program", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True).stdout
    assert "Search the learning rate: a method of one file" in shown
    shown = done(tmp_path, "rate", "search", "--help")
    assert "--highest" in shown and "Largest learning rate" in shown and "Find the learning rate" in shown
    code, _, told = program(tmp_path, "rate", "search", *FAST, "--highest", "7")
    assert code == 2 and "highest" in told


def test_the_candidate_and_its_fragment_are_kept_and_best_yaml_is_the_best_trials(searched: Path) -> None:
    study = open_study(searched)
    assert study.config.identity["method"] == "rate"
    candidates = [trial for trial in study.trials if not trial.baseline]
    assert [t.fragment for t in candidates] == [{"optim": {"lr": t.candidate["lr"]}} for t in candidates]  # type: ignore[index]
    assert all(t.candidate["lr"] <= 0.03 for t in candidates)  # type: ignore[index]
    best = yaml.safe_load((searched / "best.yaml").read_text())
    assert study.best is not None and best == dict(study.best.fragment)
    told = json.loads(done(searched.parent, "study", "show", "s", "--json"))
    assert told["refused"] == {"a learning rate above 0.03": told["refused"]["a learning rate above 0.03"]}


def test_a_study_goes_on_from_its_folder_alone(searched: Path) -> None:
    told = json.loads(done(searched.parent, "study", "resume", str(searched), "--trials", "3", "--json"))
    assert told["trials"] == 4
    code, _, told = program(
        searched.parent, "rate", "search", *LEARNING, "--highest", "0.5", "--name", "s", "--out", "."
    )
    assert code == 2 and "highest" in told and "another --name" in told


def test_its_finding_is_compared_shown_and_reported(searched: Path) -> None:
    root = searched.parent
    told = json.loads(done(root, "rate", "train", "--study", "s", "--baseline", "--seeds", "2", "--json"))
    assert [run["side"] for run in told["runs"]] == ["baseline", "searched"] * 2
    shown = json.loads(done(root, "rate", "show", "--study", "s", "--json"))
    assert shown["tables"][0]["columns"] == ["", "lr"]
    done(root, "report", "s")
    page = (searched / "report.html").read_text(encoding="utf-8")
    assert "The rate" in page and "95%" in page


def test_candidates_that_are_no_product_are_kept_as_json_and_their_search_goes_on(tmp_path: Path) -> None:
    words = ["wording", "search", *FAST, "--name", "w", "--out", "."]
    done(tmp_path, *words, "--trials", "1")
    told = json.loads(done(tmp_path, *words, "--trials", "2", "--json"))
    assert told["trials"] == 3
    study = open_study(tmp_path / "w")
    assert all("sum" in (t.candidate or {}) for t in study.trials if not t.baseline)
    assert study.config.space is None  # only its method can read it
    code, _, told = program(tmp_path, *words[:-3], "other", "--sampler", "dycors", "--out", ".")
    assert code == 2 and "dycors" in told and "random" in told
    assert not (tmp_path / "other").exists()


def test_options_are_checked_where_python_gives_them() -> None:
    assert {"assign", "anchors", "rate", "wording"} <= set(methods())
    assert load_method("rate", {"highest": 0.5}).options.highest == 0.5
    from detsearch_cli.errors import StudyError

    with pytest.raises(StudyError, match="highest must be at least 1e-05 and at most 1, got 7"):
        load_method("rate", {"highest": 7})
    with pytest.raises(StudyError, match="'lowest' is none of the options"):
        load_method("rate", {"lowest": 1})


def test_the_methods_of_the_program_import_nothing_heavy() -> None:
    code = (
        "import sys; from detsearch_cli.methods.base import methods; methods();"
        "print([m for m in ('torch', 'numpy', 'pydantic', 'yaml', 'typer') if m in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert shown.stdout == "[]\n"


def strings(path: Path) -> Iterator[str]:
    """Every text in a file that is code: no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.value


def test_no_method_is_named_outside_its_folder() -> None:
    for name in methods():
        for path in PACKAGE.rglob("*.py"):
            if (PACKAGE / "methods" / name) in path.parents or path == PACKAGE / "cli" / f"{name}.py":
                continue
            text = path.read_text(encoding="utf-8")
            assert f"methods.{name}" not in text, f"{path} imports the method {name}"
            if path.parent == PACKAGE / "cli" and path.name != "demo.py":  # the demo shows one method at work
                assert name not in strings(path), f"{path} names the method {name}"


def test_a_method_knows_its_name_by_its_place() -> None:
    assert {name: cls.name() for name, cls in methods().items()} == {name: name for name in methods()}
    assert method_class("assign")().options == method_class("assign").Options()


def test_every_default_of_an_option_is_within_its_limits() -> None:
    import dataclasses

    for cls in methods().values():
        for options in (cls.Options, cls.ShowOptions):
            for field in dataclasses.fields(options):
                about: Any = field.metadata
                assert about["help"].endswith(".")
                if field.default is not None and about["min"] is not None:
                    assert field.default >= about["min"]
