"""A search as a person follows it: one line an event, and what was found at its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from detsearch_cli.cli import console

if TYPE_CHECKING:
    from detsearch_cli.search.plan import Event
    from detsearch_cli.search.study import Trial
    from detsearch_cli.session.search import Search, SearchResult


class Live:
    """One line an event: what finished, and the best so far."""

    def __call__(self, event: Event) -> None:
        if event.kind in ("resumed", "waiting", "refused", "noise"):
            console.say(f"{event.kind}: {event.message}")
        trial = event.trial
        if trial is None or event.kind not in ("finished", "failed", "repeated", "retried"):
            return
        name, score = f"{label(trial):>10}", f"AP {console.percent(trial.value):>5}"
        best = event.best
        so_far = f"   best {console.percent(best.value)} ({label(best)})" if best is not None else ""
        if event.kind == "finished":
            seconds = f"{trial.seconds:.0f} s" if trial.seconds is not None else ""
            console.say(f"{name}  {score}  {seconds:>6}{so_far}   {in_short(trial)}")
        elif event.kind == "failed":
            console.say(f"{name}  failed: {trial.reason}")
        elif event.kind == "repeated":
            console.say(f"{name}  {score}  as trial {trial.repeat_of}{so_far}")
        else:
            console.say(f"{name}  its worker died; it goes on in a new one")


def label(trial: Trial) -> str:
    """`baseline` or `trial 7`."""
    from detsearch_cli.session.search import label as labelled

    return labelled(trial)


def in_short(trial: Trial) -> str:
    """The candidate in a few characters: its values in the order of the space."""
    if trial.candidate is None:
        return "the recipe as given"
    return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in trial.candidate.values())


def conclude(search: Search, result: SearchResult, page: Path, as_json: bool) -> None:
    """What was found, and what to do next."""
    from detsearch_cli.search.noise import fresh_in_words, fresh_leads, lead_in_words, lead_of, noise_of
    from detsearch_cli.session.search import BEST

    best, baseline, folder = result.best, result.baseline, result.folder
    noise, lead = noise_of(result.outcome.trials), lead_of(result.outcome.trials)
    if as_json:
        console.emit_json(
            {
                "study": str(folder),
                "reason": result.outcome.reason,
                "baseline": baseline.value if baseline else None,
                "noise": None if noise is None else {"sd": noise.sd, "scores": list(noise.scores)},
                "best": {"number": best.number, "AP": best.value, "candidate": best.candidate},
                "fresh_leads": fresh_leads(result.outcome.trials),
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
    if best.baseline:
        console.say("nothing better than the recipe as given was found")
    else:
        leads = fresh_leads(result.outcome.trials)
        which = label(best) + (f", the mean over {len(leads) + 1} seeds" if leads else "")
        console.say(f"best     AP {console.percent(best.value)} ({which}), chosen among many: not yet proof")
        if leads:
            console.say(fresh_in_words(leads))
        elif noise is not None and lead is not None:
            console.say(lead_in_words(*lead, noise))
        console.say(f"test it: detsearch {search.method.name()} train --study {folder} --baseline --seeds 3")
    console.say(f"wrote {folder / BEST} and {page}")
