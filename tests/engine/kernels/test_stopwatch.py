"""Races with a clock of their own: what is taken of them, what is kept, and when they are not run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import Cancelled
from engine.events.cancellation import StopToken
from engine.kernels import stopwatch
from engine.kernels.stopwatch import Race, Run, Stopwatch, machine_key, race


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, *seconds: float) -> tuple[Run, list[float]]:
        """A function that takes these times in turn, the last one for ever; and its calls."""
        calls: list[float] = []

        def run() -> None:
            calls.append(self.now)
            self.now += seconds[min(len(calls), len(seconds)) - 1]

        return run, calls


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path))
    monkeypatch.setattr(stopwatch, "_busy", lambda: False)


def test_the_shortest_call_counts_and_the_first_is_a_warm_up() -> None:
    clock = Clock()
    first, calls = clock.taking(1e-6, 0.004, 0.002, 0.009, 0.003)
    second, others = clock.taking(1e-6, 0.001)
    assert race(first, second, clock) == (2.0, 1.0)
    assert len(calls) == len(others) and calls[1] < others[1] < calls[2], "in turns"


def test_short_calls_are_made_often_and_long_ones_six_times() -> None:
    clock = Clock()
    (long, longs), (short, shorts) = clock.taking(0.1), clock.taking(1e-6)
    race(long, long, clock)
    race(short, short, clock)
    assert len(longs) == 2 * 7 and len(shorts) == 2 * 41


def results(*found: Race) -> tuple[Callable[..., Race], list[int]]:
    left, count = list(found), [0]

    def racing(first: Run, second: Run) -> Race:
        count[0] += 1
        return left.pop(0)

    return racing, count


def make() -> tuple[Run, Run]:
    return (lambda: None), (lambda: None)


def test_the_second_has_to_win_twice() -> None:
    racing, count = results((3.0, 2.0), (1.5, 2.5), (1.0, 2.0))
    watch = Stopwatch(StopToken(), 10, None, racing)
    assert watch.race("a", make) == (1.5, 2.0) and count == [2]
    assert watch.race("b", make) == (1.0, 2.0) and count == [3]
    assert watch.race("a", make) == (1.5, 2.0) and count == [3], "equal work is measured once"


def test_a_machine_measures_once(tmp_path: Path) -> None:
    racing, count = results((1.0, 2.0), (1.0, 4.0))
    first = Stopwatch(StopToken(), 10, "m", racing)
    first.race("a", make)
    first.keep()
    assert Stopwatch(StopToken(), 10, "m", racing).race("a", make) == (1.0, 2.0) and count == [1]
    assert Stopwatch(StopToken(), 10, "other", racing).race("a", make) == (1.0, 4.0)
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text()) == {"a": [1.0, 2.0]}


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": [1, 2, 3]}', '{"a": ["x", 2]}', "\0"])
def test_a_damaged_cache_is_measured_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "timings-m.json").write_text(content)
    racing, count = results((1.0, 2.0))
    watch = Stopwatch(StopToken(), 10, "m", racing)
    assert watch.race("a", make) == (1.0, 2.0) and count == [1]


def test_what_a_busy_machine_measured_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "_busy", lambda: True)
    watch = Stopwatch(StopToken(), 10, "m", results((1.0, 2.0))[0])
    watch.race("a", make)
    watch.keep()
    assert not watch.quiet and not list(tmp_path.iterdir())


def test_no_race_is_begun_after_the_time_is_over_or_the_stop() -> None:
    stop = StopToken()
    racing, count = results((1.0, 2.0))
    assert Stopwatch(stop, -1.0, None, racing).race("a", make) is None and count == [0]
    stop.set()
    with pytest.raises(Cancelled):
        Stopwatch(stop, 10, None, racing).race("a", make)


def test_the_key_follows_the_threads_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    before = machine_key()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    many = machine_key()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert len({before, many, machine_key()}) == 3
