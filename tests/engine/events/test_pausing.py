"""Requests from other threads and signal handlers, and a clock without the pauses."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from engine.errors import Cancelled
from engine.events.cancellation import StopToken
from engine.events.progress import Every, Ticker


def checking(stop: StopToken) -> tuple[threading.Thread, list[Any]]:
    """A thread in ``check``; the list gets the end, None or the exception, and the processor seconds spent there."""
    end: list[Any] = []

    def run() -> None:
        before = time.thread_time()
        try:
            stop.check()
            end.append(None)
        except Cancelled as error:
            end.append(error)
        end.append(time.thread_time() - before)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, end


def test_a_token_lets_the_run_go_until_it_is_set() -> None:
    stop = StopToken()
    stop.check()
    assert not stop.paused and not stop.wants_enough
    stop.set()
    for _ in range(2):
        with pytest.raises(Cancelled):
            stop.check()


@pytest.mark.parametrize(("end", "kind"), [(StopToken.go_on, type(None)), (StopToken.set, Cancelled)])
def test_a_pause_holds_the_run_until_it_goes_on_or_stops(end: Callable[[StopToken], None], kind: type) -> None:
    stop = StopToken()
    stop.pause()
    thread, found = checking(stop)
    thread.join(0.3)
    assert thread.is_alive() and stop.paused
    began = time.perf_counter()
    end(stop)
    thread.join(5)
    assert time.perf_counter() - began < 2
    outcome, busy = found
    assert isinstance(outcome, kind) and busy < 0.05


def test_every_pause_holds_whatever_came_before() -> None:
    """Calls that met nobody waiting leave nothing behind that would end the next pause."""
    stop = StopToken()
    for _ in range(3):
        stop.pause()
        stop.pause()
        stop.go_on()
        stop.go_on()
    stop.check()
    stop.pause()
    thread, found = checking(stop)
    thread.join(0.1)
    assert thread.is_alive()
    stop.go_on()
    thread.join(5)
    assert found[0] is None


@pytest.mark.parametrize(("end", "raises"), [(StopToken.go_on, False), (StopToken.set, True)])
def test_a_signal_handler_ends_the_pause_of_the_thread_that_it_interrupts(end: Callable[[StopToken], None], raises: bool) -> None:
    stop = StopToken()
    before = signal.signal(signal.SIGUSR1, lambda *_: end(stop))
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    rescue = threading.Timer(10, stop.set)
    try:
        stop.pause()
        timer.start()
        rescue.start()
        if raises:
            with pytest.raises(Cancelled):
                stop.check()
        else:
            stop.check()
    finally:
        timer.cancel()
        rescue.cancel()
        signal.signal(signal.SIGUSR1, before)


def test_enough_is_for_good_and_does_not_stop() -> None:
    stop = StopToken()
    stop.enough()
    stop.check()
    assert stop.wants_enough


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    moment = [100.0]
    monkeypatch.setattr("engine.events.cancellation.time.perf_counter", lambda: moment[0])
    return moment


def test_the_clock_stands_still_in_a_pause(now: list[float]) -> None:
    stop = StopToken()
    seen = []
    for seconds, act in ((2, stop.pause), (5, stop.pause), (7, stop.go_on), (3, stop.go_on), (1, stop.pause), (4, stop.go_on)):
        now[0] += seconds
        act()
        seen.append(stop.clock() - 100)
    assert seen == [2, 2, 2, 5, 6, 6]
    now[0] += 8
    assert stop.clock() - 100 == 14


def test_rate_and_eta_know_nothing_of_pauses(now: list[float]) -> None:
    stop = StopToken()
    ticker = Ticker("calibrate", 40, "img", clock=stop.clock)
    now[0] += 2
    (first,) = ticker.advance(10)
    stop.pause()
    now[0] += 1000
    stop.go_on()
    now[0] += 2
    (second,) = ticker.advance(10)
    assert (first.rate, first.eta) == (5, 6) and (second.rate, second.eta) == (5, 4)


def test_what_is_due_comes_at_once_and_then_at_its_interval(now: list[float]) -> None:
    due = Every(0.25, lambda: now[0])
    said = []
    for _ in range(9):
        said.append(due())
        now[0] += 0.125
    assert said == [True, False] * 4 + [True]


def test_threads_that_pause_at_once_leave_a_clock_that_never_runs_back() -> None:
    stop, over = StopToken(), threading.Event()

    def press() -> None:
        while not over.is_set():
            stop.pause()
            stop.go_on()

    threads = [threading.Thread(target=press, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    times = [stop.clock() for _ in range(3000)]
    over.set()
    for thread in threads:
        thread.join(5)
    assert times == sorted(times) and not stop.paused
    stop.check()
