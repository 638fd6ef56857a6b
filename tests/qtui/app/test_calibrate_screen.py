"""The calibration by keyboard: ranges while it runs, the result, and the decision to train."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from app_driving import Driver, drive
from scripted_engine import MEASURED, Gate, ScriptedEngine
from snapshots import check_svg, check_text

from engine.recipe.decisions import Train
from qtui.screens.calibrate import CalibrateScreen
from qtui.screens.calibrate_ranges import settled
from qtui.screens.dialogs import Reading
from qtui.widgets.sentence import Sentence
from qtui.widgets.table import Grid

RECIPE = {"model": "simplecnn", "data": {"name": "digits"}, "qat": {"epochs": 3}}
Script = Callable[[Driver], Awaitable[None]]


def screen(driver: Driver) -> CalibrateScreen:
    found = driver.app.stage_screen
    assert isinstance(found, CalibrateScreen)
    return found


def said(driver: Driver) -> str:
    return screen(driver).query_one(Sentence).text


async def to_ranges(driver: Driver, gate: Gate) -> None:
    """Until 320 images are seen and the engine is held there."""
    driver.app.session.start(RECIPE)
    await driver.until(lambda state: state.asking == "optimize")
    driver.app.session.answer(True)
    await driver.until(lambda state: state.asking == "quantize")
    driver.app.session.answer(True)
    await driver.until(lambda state: gate.reached.is_set() and state.run.progress and state.run.progress.done == 320)
    await driver.on("calibrate")
    await driver.pilot.pause()


async def to_result(driver: Driver) -> None:
    for gate in driver.engine.gates:
        gate.opened.set()
    await driver.until(lambda state: state.asking == "qat")
    await driver.on("calibrate")
    await driver.pilot.pause()


def calibrating(runs: Path, script: Callable[[Driver, Gate], Awaitable[None]], size: tuple[int, int] = (80, 24)) -> None:
    gate = Gate("calibrate 384")

    async def go(driver: Driver) -> None:
        await to_ranges(driver, gate)
        await script(driver, gate)

    drive(ScriptedEngine(runs, gates=(gate,)), go, size)


def asked(runs: Path, script: Script, size: tuple[int, int] = (80, 24), met: bool = True) -> ScriptedEngine:
    engine = ScriptedEngine(runs, met=met, gates=(Gate("calibrate 384"),))

    async def go(driver: Driver) -> None:
        await to_ranges(driver, engine.gates[0])
        await to_result(driver)
        await script(driver)

    drive(engine, go, size)
    return engine


def test_ranges_grow_and_turn_to_layers(runs: Path) -> None:
    async def script(driver: Driver, gate: Gate) -> None:
        assert screen(driver).view == "ranges"
        assert "320 of 512" in driver.text and "2,140 img/s" in driver.text and "4 of 4 settled" in driver.text
        assert "conv1 ─ activations" in driver.text and "┆" in driver.text
        check_text(driver, "calibrate-ranges")
        await driver.press("down")
        await driver.pilot.pause()
        assert "conv2 ─ activations" in driver.text and "conv2 ─ weights ─ 64 channels" in driver.text
        assert said(driver).startswith("conv2 reads values")
        await driver.press("v")
        assert "No layer is measured yet" in said(driver) and screen(driver).view == "ranges"
        before = driver.text
        await driver.press("y")
        await driver.pilot.pause()
        assert screen(driver).logarithmic and "log counts" in driver.text and driver.text != before
        await to_result(driver)
        assert screen(driver).view == "layers"

    calibrating(runs, script)


def test_a_reason_that_is_read_keeps_up_with_the_run(runs: Path) -> None:
    async def script(driver: Driver, gate: Gate) -> None:
        await driver.press("n")
        assert "Nothing is measured yet" in said(driver)
        measured = replace(driver.state, run=replace(driver.state.run, measured={"ptq": MEASURED["ptq"]}))
        screen(driver).show(measured)
        assert said(driver) == "The layers are still being measured: the report comes after them"
        screen(driver).query_one(Sentence).forget()
        screen(driver).show(measured)
        assert "still being measured" not in said(driver), "what was taken away does not come again"

    calibrating(runs, script)


def test_a_view_that_was_chosen_stays(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("v")
        assert screen(driver).view == "ranges"
        driver.app.refresh_state()
        await driver.pilot.pause()
        assert screen(driver).view == "ranges"
        await driver.press("o")
        assert "v shows them" in said(driver)
        await driver.press("v", "y")
        assert screen(driver).view == "layers" and "v shows them" in said(driver)
        await driver.press("v", "enter")
        assert screen(driver).view == "layers", "on the ranges it goes to the layers"
        await driver.press("enter")
        assert isinstance(driver.app.screen, Reading), "on a measured layer it opens that layer"

    asked(runs, script)


def test_pause_and_stop_while_it_runs(runs: Path) -> None:
    async def script(driver: Driver, gate: Gate) -> None:
        await driver.press("p")
        await driver.until(lambda state: state.job and state.job.paused)
        assert "paused" in driver.text
        await driver.press("p")
        await driver.until(lambda state: state.job and not state.job.paused)
        await driver.press("s")
        assert said(driver) == "Stopping: what was done is kept, and r on the first screen (1) goes on with this run"
        await driver.until(lambda state: state.job is None)
        assert driver.state.run.stopped and "stopped: 1, then r goes on" in driver.text
        done, of = settled(driver.state.run)
        assert f"Ranges ─ {done} of {of} settled" in driver.text

    calibrating(runs, script)


def test_the_result_and_its_order(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        assert "● met: a drop of at most 0.5 points" in driver.text and "t trains anyway" in driver.text
        grid = screen(driver).query_one("#layers", Grid)
        assert [row.key for row in grid.rows] == ["fc1", "conv2", "conv1", "fc2"] and grid.has_focus
        check_text(driver, "calibrate-layers")
        check_svg(driver, "calibrate-layers")
        await driver.press("o")
        assert [row.key for row in grid.rows] == ["conv1", "conv2", "fc1", "fc2"]
        assert "as in the graph" in driver.text
        await driver.press("s")
        await driver.until(lambda state: state.job is None)
        assert said(driver) == "Stopped: what was done is kept, and r on the first screen (1) goes on with this run"
        assert driver.state.run.stopped and driver.state.run.status("calibrate") == "stopped"
        for key in ("n", "t", "6", "5"):
            await driver.press(key)
            assert "This run was stopped: r on the first screen (1) goes on with it" in said(driver), key

    asked(runs, script)


def test_no_goes_on_to_the_report(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("n")
        await driver.until(lambda state: state.run.report and not state.job)
        await driver.on("report")
        driver.app.go("calibrate")
        await driver.on("calibrate")
        await driver.pilot.pause()
        assert screen(driver).view == "layers" and "t trains anyway" not in driver.text
        await driver.press("t")
        assert "t in its report" in said(driver)
        await driver.press("n")
        await driver.on("report")

    assert asked(runs, script).answers["qat"] is False


def test_yes_trains(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        assert "over the threshold of 0.01: t trains" in driver.text and "✗ not met" in driver.text
        await driver.press("t")
        await driver.until(lambda state: state.run.training.epochs)
        await driver.until(lambda state: state.job is None)

    assert asked(runs, script, met=False).answers["qat"] is True


def test_a_number_of_epochs(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("E")
        await driver.pilot.pause()
        assert "how many epochs" in driver.text
        await driver.press("backspace", "x", "enter")
        await driver.pilot.pause()
        assert "whole number" in driver.text
        await driver.press("backspace", "2", "enter")
        await driver.until(lambda state: state.job is None)

    assert asked(runs, script).answers["qat"] == Train(2)


def test_edit_goes_to_the_strategy_of_the_layer_under_the_cursor(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        for _ in range(2):
            await driver.press("down")
            wanted = screen(driver).query_one("#layers", Grid).cursor
            await driver.press("e")
            await driver.on("strategy")
            await driver.pilot.pause()
            front = driver.app.stage_screen
            assert front is not None and wanted in ("conv1", "conv2", "fc1", "fc2")
            assert [grid.cursor for grid in front.query(Grid) if grid.has_focus] == [wanted]
            driver.app.go("calibrate")
            await driver.on("calibrate")
            await driver.pilot.pause()

    asked(runs, script)


def test_a_reopened_run(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("n")
        await driver.until(lambda state: state.run.report and not state.job)
        directory = Path(driver.state.run.directory)
        driver.app.session.open(directory)
        driver.app.go("calibrate")
        await driver.on("calibrate")
        await driver.pilot.pause()
        assert screen(driver).view == "layers" and "● met" in driver.text and "fc1" in driver.text
        await driver.press("v")
        await driver.pilot.pause()
        assert "conv1 ─ activations" in driver.text
        (directory / "events.jsonl").write_text("")
        driver.app.session.open(directory)
        driver.app.refresh_state()
        await driver.press("v")
        await driver.pilot.pause()
        assert "99.72 → 99.44" in driver.text

    asked(runs, script)


@pytest.mark.parametrize("size", [(120, 40), (60, 20), (40, 12)])
def test_sizes(runs: Path, size: tuple[int, int]) -> None:
    async def script(driver: Driver, gate: Gate) -> None:
        assert "conv1" in driver.text and "62 %" in driver.text and "64" in driver.text
        if size == (120, 40):
            check_text(driver, "calibrate-ranges")
        await to_result(driver)
        assert "99.72 → 99.44 % (±0.7)" in driver.text and "fc1" in driver.text and "25.0" in driver.text and "t train" in driver.text

    calibrating(runs, script, size)


def test_the_noise_along_the_depth_is_shown_and_hidden(runs: Path) -> None:
    async def script(driver: Driver, gate: Gate) -> None:
        await driver.press("d")
        assert not screen(driver).query_one("#depth").display
        await to_result(driver)
        await driver.press("d")
        assert screen(driver).query_one("#depth").display
        cursor = screen(driver).query_one("#layers", Grid).cursor
        assert cursor is not None and f"{cursor}  " in driver.text and "dB alone" in driver.text
        await driver.press("d")
        assert not screen(driver).query_one("#depth").display

    calibrating(runs, script)
