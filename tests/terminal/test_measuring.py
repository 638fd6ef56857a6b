"""The measuring library, and the benchmark's scenarios as far as a small app can stand for the real one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tui
from pty_terminal import PtyTerminal, python

HERE = Path(__file__).parent
Start = Callable[..., PtyTerminal]


def test_a_key_is_timed_to_what_it_brings(counting: Start) -> None:
    terminal = counting("--flood")
    first, named = terminal.time_key("x"), terminal.time_key("a", "keys 2")
    assert first is not None and 0 < first < 500
    assert named is not None and 0 < named < 500
    assert terminal.time_key("b", "never painted", timeout=0.3) is None


def test_rest_is_silent_and_a_flood_is_counted(counting: Start) -> None:
    assert counting().drain(0.5) == 0
    terminal = counting("--flood")
    frames, start = terminal.frames, time.perf_counter()
    assert terminal.drain(1) > 1000
    assert 3 < (terminal.frames - frames) / (time.perf_counter() - start) < 70


def test_the_size_changes(counting: Start) -> None:
    terminal = counting()
    terminal.resize(40, 10)
    terminal.press("x")
    terminal.wait_for("keys 1")
    assert len(terminal.lines) == 10 and max(map(len, terminal.lines)) <= 40


def test_what_does_not_come_is_told_with_the_screen(counting: Start) -> None:
    with pytest.raises(TimeoutError, match="keys 0"):
        counting().wait_for("never", 0.2)


def test_a_program_that_ends_is_noticed() -> None:
    with PtyTerminal(python("-c", "print('short'); raise SystemExit(3)")) as terminal:
        terminal.wait_for("short", 5)
        assert terminal.exit_code(5) == 3
        with pytest.raises(TimeoutError):
            terminal.first_frame(1)


def test_the_benchmark_prints_rows_and_budgets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tui, "WAY", (tui.Step("models", (), "keys 0", 10),))
    bench = tui.Bench(python(HERE / "counting_app.py"), repeats=1)
    assert tui.measured(bench, ["first-frame"]) in (True, False)
    assert "ratio" in capsys.readouterr().out
    monkeypatch.setattr(tui, "SCENARIOS", {"slow": lambda bench: iter([tui.Row("a thing", 3.0, "ms", 2.0)])})
    assert not tui.measured(bench, ["slow"])
    assert "MISSED" in capsys.readouterr().out


def test_the_way_is_played_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    way = (tui.Step("models", (), "keys 0", 10), tui.Step("graph", ("x",), "keys 1", 10), tui.Step("strategy", ("y", "z"), "x y z", 10))
    monkeypatch.setattr(tui, "WAY", way)
    bench = tui.Bench(python(HERE / "counting_app.py"))
    with bench.start() as terminal:
        bench.reach(terminal, "graph")
        assert "keys 1" in terminal.text
        bench.reach(terminal, "strategy", after="graph")
        assert "keys 3" in terminal.text
