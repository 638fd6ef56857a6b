"""Runs side by side: reading them, their places on the chart, the screen by keyboard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from app_driving import Driver, drive
from reports import measured, told, write_run
from scripted_engine import MEASURED, ScriptedEngine
from snapshots import check_svg, check_text

from engine.events import event as ev
from engine.runs.rundir import list_runs
from qtui import runs as past_runs
from qtui.drawing.rows import Cell
from qtui.runs import Form, Past, PastRun, past
from qtui.screens import compare_rows as rows
from qtui.screens.compare import CompareScreen
from qtui.screens.side_by_side import SideBySide, pairs, sides, told_apart
from qtui.screens.side_by_side import rows as pair_rows
from qtui.state import Run, State
from qtui.widgets.sentence import Sentence
from qtui.widgets.table import Grid

RULES = "preset: w4a4\nrules:\n- match: conv1\n  weights: {bits: 8}\n- match: fc*\n  weights: null\n"


def run(name: str, value: float | None = 0.99, size: float = 300_000, single: float = 0.3, **more: object) -> PastRun:
    fields = {"model": "simplecnn", "data": "digits", "chosen": "ptq", "form": "ptq", "preset": "default", "rules": 0, **more}
    quantized = Form(value, 0.01, size, single, single * 10, bool(fields.pop("simulated", False)))
    baseline = Form(0.9972, 0.005, 2_181_000, 0.31, 6.2)
    started = "2026-01-02T03:04:05"
    return PastRun(Path(name), started, metric=str(fields.pop("metric", "accuracy")), baseline=baseline, quantized=quantized, **fields)  # type: ignore[arg-type]


def test_finished_runs_are_read_with_their_strategy(runs: Path) -> None:
    write_run(runs, "one", told())
    write_run(runs, "two", told(qat={**MEASURED["qat"]}), RULES)
    write_run(runs, "three", told(graph={**told()["graph"], "order": "quantize-first"}), recipe=None)
    found = past(list_runs(runs))
    assert [run.directory.name for run in found.runs] == ["three", "two", "one"]
    assert [rows.strategy(run) for run in found.runs] == ["?, folded last", "w4a4 + 2 rules, QAT", "default"]
    assert found.runs[1].quantized.value == 0.9972 and found.runs[2].quantized.value == 0.9944


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"schema": 1}',
        '{"schema": 99}',
        json.dumps(told(ptq=3)),
        json.dumps(told(ptq={"size_bytes": "many"})),
        json.dumps(told(data=None)),
    ],
)
def test_unreadable_reports_are_passed_over_and_counted(runs: Path, text: str) -> None:
    write_run(runs, "bad", text)
    write_run(runs, "good", told())
    found = past(list_runs(runs))
    assert [run.directory.name for run in found.runs] == ["good"] and found.unreadable == 1
    assert "1 unreadable" in rows.title(found, found.runs, True, "", "")


def test_a_missing_figure_is_none(runs: Path) -> None:
    write_run(runs, "one", told(ptq={"value": None, "size_bytes": None, "latency_ms": None}))
    assert past(list_runs(runs)).runs[0].quantized == Form()


def test_only_the_newest_200_are_read(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past_runs, "MOST", 3)
    for index in range(5):
        write_run(runs, f"{index}", told())
    found = past(list_runs(runs))
    assert [run.directory.name for run in found.runs] == ["4", "3", "2"] and found.left_out == 2


def test_a_report_is_read_again_only_when_it_changed(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_run(runs, "one", told())
    first = past(list_runs(runs))
    with monkeypatch.context() as patch:
        patch.setattr(past_runs, "_load", lambda *_: pytest.fail("it was read again"))
        assert past(list_runs(runs)) == first
    (directory / "report.json").write_text(json.dumps(told(ptq=measured(0.5, 1, 1.0))))
    os.utime(directory / "report.json", ns=(1, 1))
    assert past(list_runs(runs)).runs[0].quantized.value == 0.5


def test_a_run_in_another_folder_is_among_them(runs: Path, tmp_path: Path) -> None:
    write_run(runs, "one", told())
    elsewhere = write_run(tmp_path / "elsewhere", "mine", told())
    assert [run.directory.name for run in past(list_runs(runs), elsewhere).runs] == ["mine", "one"]
    assert len(past(list_runs(runs), runs / "one").runs) == 1


def test_reading_runs_needs_no_torch() -> None:
    code = "import qtui.runs, sys; qtui.runs.past(()); assert not {'torch', 'textual', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_runs_that_none_beats() -> None:
    cheap, good, beaten, twin = run("a", 0.98, 100_000), run("b", 0.99, 200_000), run("c", 0.97, 150_000), run("d", 0.99, 200_000)
    assert rows.unbeaten((cheap, good, beaten, twin), "size") == {"a", "b", "d"}
    assert "another run is as good or better, and smaller" in rows.sentence(beaten, (cheap, good, beaten), "size", Path("a"))
    assert rows.sentence(cheap, (cheap, good), "size", Path("a")) == "This run (default): no other run is as good and smaller."


def test_of_a_perplexity_less_is_better() -> None:
    good, bad = run("a", 20.0, metric="perplexity"), run("b", 30.0, metric="perplexity")
    assert rows.unbeaten((good, bad), "size") == {"a"} and rows.y_format("perplexity")(-20.0) == "20.00"


def test_a_simulated_run_has_no_speed() -> None:
    simulated = run("a", simulated=True)
    assert rows.cost(simulated.quantized, "size") == 0.3 and rows.cost(simulated.quantized, "batched") is None
    assert "simulated" in rows.sentence(simulated, (simulated,), "batched", Path("b"))
    (row,) = rows.rows((simulated,), "size", False, Path("b"))
    assert "simulated" in [cell.text if isinstance(cell, Cell) else cell for cell in row.cells]


def test_points_mark_the_cursor_this_run_and_fp32() -> None:
    found = rows.points((run("a"), run("b", 0.98), run("c", 0.97)), "size", Path("a"), "c")
    assert [point.marker for point in found] == ["□", "▸", "", "◆"] and found[0].y == pytest.approx(99.72)
    assert rows.points((), "size", Path("a"), "") == []


def test_a_run_that_kept_fp32_says_so() -> None:
    (row,) = rows.rows((run("a", chosen="fp32"),), "size", True, Path("b"))
    assert Cell("fp32 ✗", "harm") in row.cells and "simplecnn · digits" in row.cells


def test_the_title_counts_what_is_left_out() -> None:
    assert rows.title(Past(left_out=7), (), False, "f.py:make", "digits") == "Runs ─ 0 ─ make · digits ─ 7 older left out"


def folders(root: Path) -> list[Path]:
    return [
        write_run(root, "20260102-030405-simplecnn-digits", told()),
        write_run(root, "20260102-040405-simplecnn-digits", told(ptq=measured(0.9722, 150_000, 0.2)), RULES),
        write_run(root, "20260102-050405-simplecnn-digits", told(ptq=measured(0.9861, 600_000, 0.4))),
        write_run(root, "20260102-060405-resnet20-cifar10", told(model="resnet20", data={"name": "cifar10"})),
        write_run(root, "20260102-070405-simplecnn-digits", "{"),
    ]


async def comparing(driver: Driver, directory: Path) -> Grid:
    driver.app.session.open(directory)
    driver.app.go("report")
    await driver.on("report")
    await driver.press("c")
    await driver.pilot.pause(0.1)
    assert isinstance(driver.app.screen, CompareScreen)
    return driver.app.screen.query_one("#runs", Grid)


def test_comparing_by_keyboard(runs: Path) -> None:
    places = folders(runs)

    async def script(driver: Driver) -> None:
        grid = await comparing(driver, places[0])
        screen = driver.app.screen
        assert isinstance(screen, CompareScreen)
        assert grid.cursor == str(places[0]) and len(grid.rows) == 3
        assert "Runs ─ 3 ─ simplecnn · digits ─ 1 unreadable" in driver.text and "accuracy against size in MB" in driver.text
        check_text(driver, "compare")
        await driver.press("x")
        assert screen.axis == "single" and "p50 in ms, batch 1" in driver.text
        await driver.press("x", "x", "a")
        assert screen.axis == "size" and len(grid.rows) == 4 and "resnet20 · cifar10" in driver.text
        await driver.press("a", "k")
        assert "no other run is as good and smaller. ⏎ opens it" in screen.query_one(Sentence).text
        assert "◆" in driver.text
        await driver.press("?")
        assert "help ─ Compare" in driver.text
        await driver.press("escape", "enter")
        await driver.until(lambda state: Path(state.run.directory) == places[1])
        assert not isinstance(driver.app.screen, CompareScreen) and "97.22 ±0.7" in driver.text

    drive(ScriptedEngine(runs), script)


def test_going_back_and_elsewhere(runs: Path) -> None:
    places = folders(runs)

    async def script(driver: Driver) -> None:
        await comparing(driver, places[0])
        await driver.press("escape")
        assert not isinstance(driver.app.screen, CompareScreen)
        await driver.press("c", "6")
        assert not isinstance(driver.app.screen, CompareScreen) and driver.app.screen is driver.app.stage_screen
        await driver.press("c", "L")
        assert isinstance(driver.app.screen, CompareScreen) and driver.app.log_shown
        await driver.press("1")
        await driver.on("model")
        assert not isinstance(driver.app.screen, CompareScreen)

    drive(ScriptedEngine(runs), script)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (60, 20), (40, 12)])
def test_every_size_and_nothing_to_compare(runs: Path, size: tuple[int, int]) -> None:
    places = folders(runs)

    async def script(driver: Driver) -> None:
        await comparing(driver, places[0])
        assert "strategy" in driver.text and "97.22" in driver.text
        await driver.press("x", "x", "j", "a", "escape")
        driver.app.session.state = State(machine=driver.state.machine, run=Run(at="report"))
        driver.app.refresh_state()
        await driver.press("c")
        await driver.pilot.pause(0.05)
        assert isinstance(driver.app.screen, CompareScreen) and "finished run" in driver.text

    drive(ScriptedEngine(runs), script, size)


def test_a_run_whose_recipe_names_a_folder_is_among_its_own(runs: Path) -> None:
    directory = write_run(runs, "one", told())
    setting = ev.Setting(str(directory), {"model": "simplecnn", "data": {"name": "/somewhere/data"}}, {})
    (directory / "events.jsonl").write_text(json.dumps(setting.to_dict()) + "\n")

    async def script(driver: Driver) -> None:
        driver.app.session.open(directory)
        driver.app.show_run()
        await driver.on("report")
        await driver.press("c")
        await driver.until(lambda _: isinstance(driver.app.screen, CompareScreen))
        await driver.pilot.pause()
        assert "Runs ─ 1 ─ simplecnn · digits" in driver.text

    drive(ScriptedEngine(runs), script)


def test_runs_of_language_models_are_headed_by_perplexity_and_tokens() -> None:
    def heads(*metrics: str) -> list[str]:
        return [column.title for column in rows.columns("size", metrics)][-4:]

    assert heads("perplexity") == ["perplexity", "size MB", "ms token", "ms prompt"]
    assert heads("accuracy") == ["accuracy %", "size MB", "ms ×1", "ms ×64"]
    assert heads("accuracy", "perplexity")[0] == "value"
    assert rows.axis_words("single", "perplexity") == "ms a token" and rows.axis_words("size", "perplexity") == "size in MB"


def layer(name: str, actual: str, own: float | None, ms: float | None = None) -> dict[str, object]:
    speedup = {"speedup": {"int8_ms": ms, "fp32_ms": 2 * ms}} if ms is not None else {}
    return {"name": name, "actual": actual, "own_sqnr_db": own, "sqnr_db": own, "kernel": "dnnl", **speedup}


def test_layers_that_differ_most_come_first() -> None:
    eight, four = "w8 per-channel, a8 per-tensor", "w4 per-channel, a8 per-tensor"
    a = sides([layer("a", eight, 40.0, 0.2), layer("same", eight, 41.0), layer("b", eight, 39.0), layer("bn", "folded", None)], {"a": 1000})
    b = sides([layer("a", four, 20.0, 0.1), layer("same", eight, 30.0), layer("b", four, 38.0), layer("new", "fp32", None)], {"a": 500})
    found = pairs(a, b)
    assert [pair.name for pair in found] == ["a", "b", "new", "same"]
    assert [found[0].change(what) for what in ("sqnr_db", "size_bytes", "ms")] == [-20.0, -500.0, -0.1]
    assert found[2].a is None and found[3].change("sqnr_db") == -11.0 and not found[3].differs
    texts = [[cell.text if isinstance(cell, Cell) else cell for cell in row.cells] for row in pair_rows(found)]
    assert texts[0] == ["a", "w8 · a8", "w4 · a8", "-20.0", "-0.5", "-0.100"] and texts[2][1:] == ["–", "fp32", "", "", ""]


def test_whether_two_runs_can_be_told_apart() -> None:
    near, far = run("a", 0.990), run("b", 0.995)
    assert told_apart(near, far) == "B is the better one, but the intervals overlap: it may be chance."
    assert told_apart(far, run("c", 0.90)) == "A is the better one, beyond both intervals."
    assert told_apart(near, near) == "Both are worth the same."
    assert "cannot be compared" in told_apart(near, run("d", 30.0, metric="perplexity"))


def test_two_marked_runs_stand_side_by_side(runs: Path) -> None:
    layers = told()["layers"]
    changed = [{**layers[0], "actual": "w4 per-channel, a8 per-tensor", "own_sqnr_db": 9.0}, *layers[1:]]
    for index, found in enumerate((layers, changed, layers)):
        write_run(runs, f"2026010{index + 1}-030405-simplecnn-digits", told(layers=found))

    async def script(driver: Driver) -> None:
        await comparing(driver, runs / "20260103-030405-simplecnn-digits")
        await driver.press("equals_sign")
        assert isinstance(driver.app.screen, CompareScreen) and "Two runs are put side by side" in driver.text
        await driver.press("down", "space", "down", "space", "equals_sign")
        assert isinstance(driver.app.screen, SideBySide)
        grid = driver.app.screen.query_one("#pairs", Grid)
        assert grid.cursor == layers[0]["name"] and "Both are worth the same" in driver.text and "in A" in driver.text
        check_text(driver, "side-by-side")
        check_svg(driver, "side-by-side")
        await driver.press("escape")
        # With one mark the other is the run under the cursor; with none, the run of the report.
        await driver.press("space", "up", "space", "equals_sign")
        assert isinstance(driver.app.screen, SideBySide) and "in A" in driver.text

    drive(ScriptedEngine(runs), script)


def test_of_two_runs_it_is_known_which_stand_side_by_side(runs: Path) -> None:
    for index in (1, 2):
        write_run(runs, f"2026010{index}-030405-simplecnn-digits", told())

    async def script(driver: Driver) -> None:
        await comparing(driver, runs / "20260102-030405-simplecnn-digits")
        await driver.press("equals_sign")
        assert isinstance(driver.app.screen, SideBySide)

    drive(ScriptedEngine(runs), script)


def test_times_that_were_not_steady_are_on_no_axis(runs: Path) -> None:
    write_run(runs, "busy", told(ptq=measured(0.99, 300_000, 0.3, latency_ms={"p50": 0.3, "p95": 3.0, "batch": 1})))
    (found,) = past(list_runs(runs)).runs
    assert not found.quantized.steady and rows.cost(found.quantized, "single") is None and rows.cost(found.quantized, "size") == 0.3
    assert "too busy for steady times" in rows.sentence(found, [found], "single", Path("."))
