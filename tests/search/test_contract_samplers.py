"""What every sampler found in samplers/ must do; a new file is tested the moment it exists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detsearch_cli import parts
from detsearch_cli.errors import StudyError
from detsearch_cli.search import coordinator
from detsearch_cli.search.config import SamplerChoice
from detsearch_cli.search.samplers.base import Proposal, Sampler, trusted
from detsearch_cli.search.space import Candidate, Choice, Integer, Product, Real, key
from tests.search.driving import Inline, search
from tests.search.words import Words

NAMES = parts.names("search.samplers")
SPACES = {
    "fifteen counts": Product(tuple(Integer(f"c{i}", 1, 25) for i in range(15))),
    "five counts": Product(tuple(Integer(f"c{i}", 1, 25) for i in range(5))),
    "one count": Product((Integer("c", 1, 80),)),
    "tiny": Product((Integer("c", 1, 3),)),
    "single point": Product((Integer("c", 4, 4), Integer("d", 1, 1))),
    "mixed": Product(
        (Integer("a", 1, 9), Real("b", 1e-3, 1.0, log=True), Choice("c", ("x", "y")), Integer("fixed", 4, 4))
    ),
}
Event = tuple[str, Proposal, float]


@pytest.fixture(autouse=True)
def _quick_models(monkeypatch: pytest.MonkeyPatch) -> None:
    from detsearch_cli.search.samplers import _strategies

    monkeypatch.setattr(_strategies, "GENERATIONS", 4)
    monkeypatch.setattr(_strategies, "GP_RESTARTS", 0)


def accepted(name: str, space: Product) -> Product:
    """The space, with real numbers in the place of whole ones and without choices where the sampler wants that."""
    if parts.find("search.samplers", name, Sampler, StudyError).accepts(space):
        return space
    ranges = [p for p in space.parameters if not isinstance(p, Choice)]
    return Product(tuple(Real(p.name, p.low, p.high) for p in ranges))


def make(name: str, space: Product, budget: int = 30, seed: int = 0, workers: int = 1) -> Sampler:
    kind = parts.find("search.samplers", name, Sampler, StudyError)
    return kind(accepted(name, space), budget, seed, workers)


def ask(sampler: Sampler) -> Candidate:
    proposal = sampler.ask()
    assert proposal is not None
    return proposal.candidate


def value(candidate: Candidate) -> float:
    numbers = [v for v in candidate.values() if not isinstance(v, str)]
    return 0.4 - sum((v - 9) ** 2 for v in numbers) / 600 / len(numbers)


def drive(
    sampler: Sampler,
    steps: int,
    workers: int,
    events: list[Event],
    flying: list[Proposal],
    refuses: bool = False,
    noisy: bool = False,
) -> None:
    """Ask and tell like a coordinator with `workers` workers; every seventh trial fails, the second first.

    refuses: every third proposal is refused. noisy: the noise is told after the first proposals, and every third candidate
    gets a second seed.
    """
    for _ in range(steps):
        kinds = [kind for kind, _, _ in events]
        if noisy and kinds.count("ask") >= 2 and "measured" not in kinds:
            sampler.measured(0.05)
            events.append(("measured", Proposal({}), 0.05))
        while len(flying) < workers and (proposal := sampler.ask()) is not None:
            events.append(("ask", proposal, 0.0))
            if refuses and sum(kind == "ask" for kind, _, _ in events) % 3 == 0:
                sampler.refused(proposal, "no")
                events.append(("refused", proposal, 0.0))
            else:
                flying.append(proposal)
        if not flying:
            return
        done = flying.pop(len(events) % len(flying))
        told = sum(kind in ("tell", "fail") for kind, _, _ in events)
        if told % 7 == 1:
            sampler.fail(done)
            events.append(("fail", done, 0.0))
        else:
            sampler.tell(done, value(done.candidate))
            events.append(("tell", done, value(done.candidate)))
            if noisy and told % 3 == 2:
                sampler.tell_again(done, value(done.candidate) - 0.01, 2)
                events.append(("again", done, value(done.candidate) - 0.01))


def replay(sampler: Sampler, events: list[Event]) -> None:
    for kind, proposal, told in events:
        if kind == "ask":
            sampler.restore(proposal)
        elif kind == "tell":
            sampler.tell(proposal, told)
        elif kind == "refused":
            sampler.refused(proposal, "no")
        elif kind == "measured":
            sampler.measured(told)
        elif kind == "again":
            sampler.tell_again(proposal, told, 2)
        else:
            sampler.fail(proposal)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", NAMES)
def test_proposals_lie_in_the_space_even_beyond_the_budget(name: str, space: Product) -> None:
    space = accepted(name, space)
    for budget, workers in ((6, 1), (16, 3)):
        events: list[Event] = []
        drive(make(name, space, budget, workers=workers), budget + 6, workers, events, [])
        asked = [proposal for kind, proposal, _ in events if kind == "ask"]
        for proposal in asked:
            space.check(proposal.candidate)
            assert list(proposal.candidate) == list(space.names)
            assert proposal.epochs is None
        limit = budget if space.size is None else min(space.size, budget)
        assert len(asked) >= limit or name == "grid"
        assert asked


@pytest.mark.parametrize("how", ["plain", "refuses", "noisy"])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("space", ["five counts", "mixed", "one count", "tiny"])
@pytest.mark.parametrize("name", NAMES)
def test_a_replayed_sampler_goes_on_like_the_uninterrupted_one(
    name: str, space: str, workers: int, how: str
) -> None:
    more = how == "refuses", how == "noisy"
    total = 10 if name in ("ei", "lcb") else 30
    events: list[Event] = []
    flying: list[Proposal] = []
    whole = make(name, SPACES[space], total, 3, workers)
    states: dict[int, list[Proposal]] = {}
    for _ in range(total):
        drive(whole, 1, workers, events, flying, *more)
        states[len(events)] = list(flying)
    for cut in list(states)[total // 5 :: max(1, len(states) // 3)]:
        resumed = make(name, SPACES[space], total, 3, workers)
        again = events[:cut]
        replay(resumed, again)
        under_way = list(states[cut])
        while len(again) < len(events):
            drive(resumed, 1, workers, again, under_way, *more)
        assert again[: len(events)] == events


@pytest.mark.parametrize("name", NAMES)
def test_a_search_that_knows_its_noise_runs_with_every_sampler(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "executor_class", lambda name: Inline)
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 0.0)
    changes = {"noise_seeds": 3, "races": True, "stops": True, "sampler": name}
    # where seeds matter as much as candidates
    space = accepted(name, Product((Integer("a", 5, 14), Integer("b", 5, 14))))
    found = search(tmp_path / "s", trials=16, space=space, budget=12, **changes)
    assert sum(t.trained for t in found.trials) == 16 or "ended early" in found.reason
    leader = found.leader
    assert leader is not None and leader.gain is not None and leader.seeds > 1
    # the sampler is rebuilt from all events, those of further seeds among them, and goes on
    longer = search(tmp_path / "s", trials=24, space=space, budget=12, **changes)
    assert longer.trials[: len(found.trials)] == found.trials
    assert len(longer.trials) > len(found.trials) or "ended early" in longer.reason or name == "grid"


def test_a_gaussian_process_follows_a_mean_of_many_seeds_more_closely_than_one_score() -> None:
    """The value that stands out is followed to the part that is left of it: closer, the more seeds it has."""
    followed = []
    for seeds in (1, 4, 100):
        sampler = make("lcb", SPACES["one count"], 40)
        sampler.measured(0.1)
        for _ in range(8):
            proposal = sampler.ask()
            assert proposal is not None
            sampler.tell(proposal, 0.3 + 0.001 * proposal.candidate["c"])
        sampler.tell_again(proposal, 0.8, seeds)
        sampler.ask()
        surrogate = sampler._method.surrogate  # type: ignore[attr-defined]
        told = surrogate.predict(np.array([[proposal.candidate["c"]]])).item()
        followed.append(-told)
    assert followed[0] < followed[1] < followed[2]
    assert followed[2] == pytest.approx(0.8, abs=0.05) and followed[0] < 0.7


def test_a_mean_of_more_seeds_is_trusted_as_far_as_a_normal_model_trusts_it() -> None:
    """Up to one scale for all, which ranks and surrogates ignore, it is the posterior mean of each."""
    values, seeds = np.array([0.30, 0.34, 0.26, 0.40, 0.28, 0.31]), np.array([1, 4, 1, 2, 1, 16])
    noise = 0.02
    found = trusted(values, seeds, noise)
    spread2 = values.var() - (noise**2 / seeds).mean()
    center = values.mean()
    posterior = center + (values - center) * spread2 / (spread2 + noise**2 / seeds)
    slope = (found[0] - center) / (posterior[0] - center)
    assert found - center == pytest.approx(slope * (posterior - center))
    assert found[seeds == 1] == pytest.approx(values[seeds == 1])


def test_what_optuna_was_told_changes_with_further_seeds() -> None:
    sampler = make("tpe", SPACES["five counts"], 12)
    sampler.measured(0.05)
    asked = [sampler.ask() for _ in range(4)]
    for proposal, told in zip(asked, (0.30, 0.50, 0.32, 0.28), strict=True):
        assert proposal is not None
        sampler.tell(proposal, told)
    assert asked[1] is not None
    sampler.tell_again(asked[1], 0.35, 3)
    values = [t.value for t in sampler._study.trials]  # type: ignore[attr-defined]
    assert values[0] == pytest.approx(0.30) and values[2:] == pytest.approx([0.32, 0.28])
    assert (
        0.35 < values[1] < 0.45
    )  # three seeds are trusted more than one, so it stands out more than .35 would


@pytest.mark.parametrize("name", NAMES)
def test_refusals_do_not_end_a_sampler_nor_grow_its_model(name: str) -> None:
    sampler = make(name, SPACES["five counts"], 12)
    asked: list[Proposal] = []
    for _ in range(60):  # beyond any initial design
        proposal = sampler.ask()
        if proposal is None:
            assert sampler.exhausted
            break
        asked.append(proposal)
        sampler.refused(proposal, "no")
    assert len(asked) == (12 if name == "grid" else 60)
    assert len({key(proposal.candidate) for proposal in asked}) == len(asked)
    if hasattr(sampler, "_method"):
        assert len(sampler._method.X) == sampler._method.surrogate.num_pts == 0
        assert len(sampler._method.Xpend) == sampler._method.pending_evals == 0


@pytest.mark.parametrize("name", ["tpe", "cmaes"])
def test_what_optuna_has_learned_and_what_is_under_way_outlast_a_thousand_refusals(name: str) -> None:
    def begun() -> Sampler:
        sampler = make(name, SPACES["five counts"], 12)
        first = [sampler.ask() for _ in range(4)]
        for proposal in first[:3]:
            assert proposal is not None
            sampler.tell(proposal, value(proposal.candidate))
        for _ in range(1000):
            proposal = sampler.ask()
            assert proposal is not None
            sampler.refused(proposal, "no")
        assert first[3] is not None
        sampler.tell(first[3], value(first[3].candidate))  # asked before all of them
        return sampler

    one, other = begun(), begun()
    assert len([t for t in one._study.trials if t.value is not None]) == 4  # type: ignore[attr-defined]
    assert len(one._study.trials) < 250  # type: ignore[attr-defined]
    assert [one.ask() for _ in range(3)] == [other.ask() for _ in range(3)]


@pytest.mark.parametrize("name", ["dycors", "srbf", "ei", "lcb"])
def test_what_the_surrogate_insists_on_is_not_proposed_again_once_refused(name: str) -> None:
    sampler = make(name, SPACES["one count"], 20)
    refused: set[str] = set()
    for step in range(30):
        proposal = sampler.ask()
        assert proposal is not None
        assert key(proposal.candidate) not in refused
        if proposal.candidate["c"] > 70 and step > 4:  # where the value grows
            sampler.refused(proposal, "too large")
            refused.add(key(proposal.candidate))
        else:
            sampler.tell(proposal, proposal.candidate["c"] / 100)
    assert refused


@pytest.mark.parametrize("name", NAMES)
def test_options_have_documented_defaults_and_only_random_takes_any_space(name: str) -> None:
    kind = parts.find("search.samplers", name, Sampler, StudyError)
    options = SamplerChoice.parse(name).options
    assert set(options) == set(kind.Options.model_fields)
    assert not options or all(f"{option}:" in (kind.Options.__doc__ or "") for option in options)
    assert kind.accepts(SPACES["mixed"]) or name == "ppo2"
    assert kind.accepts(Words()) == (name == "random")


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_proposes_other_candidates(name: str) -> None:
    space = SPACES["fifteen counts"]
    first = [key(ask(make(name, space, 40, seed))) for seed in range(4)]
    assert len(set(first)) > 1


@pytest.mark.parametrize("name", NAMES)
def test_the_global_random_state_is_left_alone(name: str) -> None:
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    sampler = make(name, SPACES["five counts"], 10)
    drive(sampler, 14, 1, [], [])
    assert np.array_equal(np.random.get_state()[1], before)
    np.random.seed(6)  # and what others do to it does not change the proposals
    other = make(name, SPACES["five counts"], 10)
    one, two = [], []
    drive(make(name, SPACES["five counts"], 10), 8, 1, one, [])
    for _ in range(8):
        np.random.random(3)
        drive(other, 1, 1, two, [])
    assert one == two


@pytest.mark.parametrize("name", NAMES)
def test_a_search_of_failures_only_goes_on(name: str) -> None:
    sampler = make(name, SPACES["five counts"], 12)
    asked = 0
    for _ in range(20):
        proposal = sampler.ask()
        if proposal is None:
            break
        asked += 1
        sampler.fail(proposal)
    assert asked >= 12 or sampler.exhausted


@pytest.mark.parametrize("name", NAMES)
def test_the_help_line_is_one_sentence(name: str) -> None:
    assert 15 < len(parts.summary("search.samplers", name)) < 100


@pytest.mark.parametrize("name", ["dycors", "srbf", "ei", "lcb", "tpe", "cmaes"])
def test_a_model_finds_more_than_chance(name: str) -> None:
    space, steps = SPACES["five counts"], 40
    best = {}
    for sampler in (name, "random"):
        events: list[Event] = []
        drive(make(sampler, space, steps, 1), steps, 1, events, [])
        best[sampler] = max(told for kind, _, told in events if kind == "tell")
    assert best[name] > best["random"]


def _refuse() -> Callable[..., Candidate]:
    def refuse(self: Sampler) -> Candidate:
        raise AssertionError("pySOT could not propose")

    return refuse


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("name", ["dycors", "srbf", "lcb"])
@pytest.mark.parametrize("budget", [10, 30, 100])
def test_pysot_proposes_itself_on_the_papers_space(
    name: str, budget: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detsearch_cli.search.samplers import _pysot

    monkeypatch.setattr(_pysot.PySOT, "_unseen", _refuse())
    steps = min(budget, 20 if name == "lcb" else 60)
    events: list[Event] = []
    drive(make(name, SPACES["fifteen counts"], budget, workers=workers), steps, workers, events, [])
    asked = {key(proposal.candidate) for kind, proposal, _ in events if kind == "ask"}
    assert len(asked) >= steps


@pytest.mark.parametrize(
    "dim, budget, workers, size, points",
    [
        (15, 100, 1, None, 32),
        (15, 40, 1, None, 20),
        (15, 10, 1, None, 5),
        (5, 100, 4, None, 12),
        (1, 100, 1, 3, 3),
        (1, 100, 8, 80, 9),
        (1, 1, 1, 80, 2),
    ],
)
def test_the_initial_design_fits_budget_workers_and_space(
    dim: int, budget: int, workers: int, size: int | None, points: int
) -> None:
    from detsearch_cli.search.samplers._pysot import initial_points

    assert initial_points(dim, budget, workers, size) == points


def test_failures_are_told_as_slightly_worse_than_the_worst() -> None:
    sampler = make("dycors", SPACES["five counts"], 20)
    first, second, third = (sampler.ask() for _ in range(3))
    assert first and second and third
    sampler.fail(first)
    sampler.tell(second, 0.3)
    sampler.tell(third, 0.1)
    fourth = sampler.ask()
    assert fourth
    sampler.fail(fourth)
    told = -sampler._method.fX.ravel()  # type: ignore[attr-defined]
    assert told[[0, 2]].tolist() == [0.3, 0.1]
    assert 0.1 < told[1] < 0.2  # only .3 was known: well below it
    assert 0.0 < told[3] < 0.09  # a third of .1 below .1


def test_the_grid_has_all_values_when_the_budget_allows_and_varies_all_parameters_when_not() -> None:
    grid = make("grid", SPACES["one count"], 100)
    assert [ask(grid) for _ in range(80)] == [{"c": i} for i in range(1, 81)]
    assert grid.ask() is None and grid.exhausted
    wide = make("grid", SPACES["fifteen counts"], 20)
    points = [ask(wide) for _ in range(20)]
    assert len({key(p) for p in points}) == 20
    assert all(len({p[name] for p in points}) == 2 for name in SPACES["fifteen counts"].names)


@pytest.mark.parametrize("name", ["dycors", "srbf"])
def test_after_a_singular_fit_a_resumed_search_proposes_what_the_uninterrupted_one_does(name: str) -> None:
    # five points of a symmetric design in three dimensions are too few for a linear tail: the first fit fails
    space = Product(tuple(Integer(f"n{i}", 1, 25) for i in range(3)))

    def begun() -> Sampler:
        return SamplerChoice.parse(name).build(space, 10, 3, 1)

    sampler, past = begun(), []
    for _ in range(10):
        proposal = sampler.ask()
        assert proposal is not None
        past.append(proposal)
        sampler.tell(proposal, 0.001 * len(past) % 0.004)
    for length in range(10):
        again = begun()
        for number, proposal in enumerate(past[:length], 1):
            again.restore(proposal)
            again.tell(proposal, 0.001 * number % 0.004)
        assert again.ask() == past[length]
