"""What a first and a second signal do while a training runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from detsearch_cli.engine import interrupt
from detsearch_cli.engine.interrupt import SIGNALS, noting_signals


@pytest.fixture
def outside() -> Iterator[list[int]]:
    """The signals that reach the handler of whoever started the training."""
    heard: list[int] = []
    before = {number: signal.signal(number, lambda n, _: heard.append(n)) for number in SIGNALS}
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_is_noted_and_the_second_ends_at_once(
    number: signal.Signals, outside: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])
    noted: list[str] = []
    with noting_signals(lambda: noted.append("noted")):
        signal.raise_signal(number)
        assert (noted, outside) == (["noted"], [])
        now[0] += 0.1
        signal.raise_signal(number)  # the same Ctrl-C, passed on by a program that started us
        assert (noted, outside) == (["noted"], [])
        now[0] += 5
        signal.raise_signal(number)
        assert (noted, outside) == (["noted"], [number])
    signal.raise_signal(number)
    assert outside == [number, number]


def test_what_was_ignored_outside_stays_ignored_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "SAME_SECONDS", -1)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    noted: list[str] = []
    try:
        with noting_signals(lambda: noted.append("noted")):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert noted == ["noted"]


def test_in_another_thread_no_handler_is_set() -> None:
    seen: list[Any] = []

    def training() -> None:
        with noting_signals(lambda: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=training)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
