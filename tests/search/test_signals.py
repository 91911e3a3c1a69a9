"""What Ctrl-C does to a coordinator."""

from __future__ import annotations

import signal

import pytest

from detsearch_cli.search import signals
from detsearch_cli.search.signals import SIGNALS, interruptible, uninterrupted


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_is_noted_and_a_later_one_interrupts_at_once(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    before = signal.getsignal(number)
    with interruptible() as interrupted:
        assert not interrupted()
        signal.raise_signal(number)
        now[0] += 0.1
        signal.raise_signal(number)  # the same Ctrl-C, passed on by a program that started us
        assert interrupted()
        now[0] += 5
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        with uninterrupted():
            signal.raise_signal(number)
    assert signal.getsignal(number) == before
