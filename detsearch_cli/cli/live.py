"""A search as a person follows it: one line an event, and what was found at its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from detsearch_cli.cli import console

if TYPE_CHECKING:
    from detsearch_cli.search.plan import Event
    from detsearch_cli.search.study import Trial
    from detsearch_cli.session.search import Search, SearchResult
    from detsearch_cli.trials import Leader


MOST_VALUES = 16  # of a candidate, in a line


class Live:
    """One line an event: what finished, and the best so far."""

    def __call__(self, event: Event) -> None:
        if event.kind in ("resumed", "waiting", "refused", "noise"):
            console.say(f"{event.kind}: {event.message}")
        trial = event.trial
        if trial is None or event.kind not in ("finished", "failed", "repeated", "retried"):
            return
        name, score = f"{label(trial):>10}", f"AP {console.percent(trial.value):>5}"
        so_far = f"   {_so_far(event)}" if event.best is not None else ""
        if event.kind == "finished":
            seconds = f"{trial.seconds:.0f} s" if trial.seconds is not None else ""
            console.say(f"{name}  {score}  {seconds:>6}{so_far}   {in_short(trial)}")
        elif event.kind == "failed":
            console.say(f"{name}  failed: {trial.reason}")
        elif event.kind == "repeated":
            console.say(f"{name}  {score}  as trial {trial.repeat_of}{so_far}")
        else:
            console.say(f"{name}  its worker died; it goes on in a new one")


def _so_far(event: Event) -> str:
    """The best; and where the noise is measured, what is expected of the candidate that leads, or is the best."""
    from detsearch_cli.cli import console
    from detsearch_cli.trials import points

    best, leader = event.best, event.leader
    assert best is not None
    told = f"best {console.percent(best.value)} ({label(best)})"
    if leader is None or leader.gain is None:
        return told
    gain = leader.gain
    which = "" if leader.trial.number == best.number else f" {label(leader.trial)}"
    return (
        f"{told},{which} expected {points(gain.expected, signed=True)} "
        f"[{points(gain.low, signed=True)}, {points(gain.high, signed=True)}]"
    )


def label(trial: Trial) -> str:
    """`baseline` or `trial 7`."""
    from detsearch_cli.session.study import label as labelled

    return labelled(trial)


def in_short(trial: Trial) -> str:
    """The candidate in a few characters: its values in the order of the space, the first of many."""
    if trial.candidate is None:
        return "the recipe as given"
    values = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in trial.candidate.values()]
    more = f",... ({len(values)} values)" if len(values) > MOST_VALUES else ""
    return ",".join(values[:MOST_VALUES]) + more


def conclude(search: Search, result: SearchResult, page: Path, as_json: bool) -> None:
    """What was found, and what to do next."""
    from detsearch_cli.search.noise import noise_of
    from detsearch_cli.session.study import BEST, standing

    best, baseline, folder = result.best, result.baseline, result.folder
    noise, leader = noise_of(result.outcome.trials), result.outcome.leader
    if as_json:
        console.emit_json(
            {
                "study": str(folder),
                "reason": result.outcome.reason,
                "baseline": baseline.value if baseline else None,
                "noise": None if noise is None else {"sd": noise.sd, "scores": list(noise.scores)},
                "best": {"number": best.number, "AP": best.value, "candidate": best.candidate},
                "leader": None if leader is None else as_json_of(leader),
                "trials": len(result.outcome.trials),
                "refused": result.outcome.refused,
                "fragment": str(folder / BEST),
                "report": str(page),
            }
        )
        return
    console.say(result.outcome.reason)
    if baseline is not None and baseline.value is not None:
        over = "" if noise is None else f", the mean over {len(noise.scores)} seeds"
        console.say(f"baseline AP {console.percent(baseline.value)} on the held-out split{over}")
    if leader is not None:
        test = f"detsearch {search.method.name()} train --study {folder}"
        if best.baseline:
            console.say("nothing better than the recipe as given was found")
            if leader.gain is not None and leader.gain.expected > 0:
                console.say(f"ahead lies {standing(leader)}: not enough to call it better")
                console.say(
                    f"test it all the same: {test} --trial {leader.trial.number} --baseline --seeds 5"
                )
        else:
            console.say(f"best     {standing(leader)}, chosen among many: not yet proof")
            console.say(f"test it: {test} --baseline --seeds 3")
    console.say(f"wrote {folder / BEST} and {page}")


def as_json_of(leader: Leader[Trial]) -> dict[str, Any]:
    """A candidate and what is expected of it, as plain data; fractions."""
    from dataclasses import asdict

    gain = None if leader.gain is None else asdict(leader.gain)
    return {"number": leader.trial.number, "AP": leader.trial.value, "seeds": leader.seeds, "gain": gain}
