"""What a study keeps of its search: samplers with options and files, the record in the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detsearch_cli.errors import StudyError
from detsearch_cli.parts import Part
from detsearch_cli.search import config
from detsearch_cli.search.config import RecordedConfig, SamplerChoice, StudyConfig, told_differences
from detsearch_cli.search.samplers.random import Random
from detsearch_cli.search.space import Integer, Product
from tests.search.words import Words


class Ranked(Random):
    class Options(Part):
        ranker: Path
        top: int = 3


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    known = config._sampler_class
    monkeypatch.setattr(config, "_sampler_class", lambda name: Ranked if name == "ranked" else known(name))


def study(sampler: Any, **changes: Any) -> RecordedConfig:
    space = Product((Integer("a", 1, 5),))
    given = {"identity": {"method": "m"}, "space": space, "seed": 0, "budget": 5, "workers": 1, **changes}
    content = StudyConfig(sampler=SamplerChoice.parse(sampler), **given).to_json()
    return RecordedConfig.from_json(json.loads(json.dumps(content)), "study")


@pytest.mark.parametrize("given", ["tpe", "{name: tpe}", {"name": "tpe", "startup": 10}])
def test_every_option_is_spelled_out(given: Any) -> None:
    assert SamplerChoice.parse(given) == SamplerChoice("tpe", {"startup": 10})


@pytest.mark.parametrize(
    "given, told",
    [
        ("dycor", "did you mean 'dycors'"),
        ("{name: tpe, start: 5}", "'start' is no option of the sampler tpe; its options: startup"),
        ("{name: grid, start: 5}", "its options: none"),
        ("{name: tpe, startup: 0}", "the sampler tpe's option startup: input should be greater"),
        ("{startup: 5}", "a sampler must have a name"),
        ("[1", "the sampler .*is not valid YAML: line "),
        ("{name: ranked}", "the sampler ranked needs the option ranker"),
        (
            "{name: ranked, ranker: nowhere.npz}",
            "option ranker must name a file, but .*nowhere.npz cannot be read",
        ),
    ],
)
def test_a_wrong_sampler_is_one_sentence(given: str, told: str, ranked: None) -> None:
    with pytest.raises(StudyError, match=told) as caught:
        SamplerChoice.parse(given)
    assert "\n" not in str(caught.value)


def test_a_file_counts_by_its_content_wherever_it_lies(
    tmp_path: Path, ranked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    a, b, c = (study({"name": "ranked", "ranker": name}) for name in "abc")
    assert a.sampler.options == {"ranker": str(tmp_path / "a"), "top": 3}
    assert told_differences(a, b) is None
    assert (told_differences(a, c) or "").startswith(
        "sampler.ranker is a file of SHA-256 7692c3ad3540bb80 there, "
    )
    assert "sampler.top is 3 there, 4 here" in (
        told_differences(a, study("{name: ranked, ranker: a, top: 4}")) or ""
    )
    built = a.sampler.build(Words(), 5, 0, 1)
    assert isinstance(built, Ranked) and built.options == Ranked.Options(ranker=tmp_path / "a")


def test_a_space_of_another_kind_is_kept_but_not_read() -> None:
    words = study("random", space=Words())
    assert words.space is None and words.space_json["letters"] == "abc"
    assert "space.kind is product there, words here" in (told_differences(study("random"), words) or "")


def test_budget_and_workers_do_not_make_another_search() -> None:
    assert told_differences(study("random"), study("random", budget=9, workers=4)) is None
