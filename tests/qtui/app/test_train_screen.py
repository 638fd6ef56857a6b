"""Training by keyboard: charts while it goes on, ending and stopping it, and what a run without it says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from app_driving import Driver, drive
from scripted_engine import Gate, ScriptedEngine
from snapshots import check_svg, check_text

from qtui.screens.train import TrainScreen
from qtui.widgets.sentence import Sentence
from qtui.widgets.table import Grid
from qtui.widgets.training_pane import TrainingPane

RECIPE = {"model": "simplecnn", "data": {"name": "digits"}, "qat": {"epochs": 3}}
BEGIN, MIDDLE = "epoch 1 part 1", "epoch 3 part 3"


def screen(driver: Driver) -> TrainScreen:
    found = driver.app.stage_screen
    assert isinstance(found, TrainScreen)
    return found


def said(driver: Driver) -> str:
    return screen(driver).query_one(Sentence).text


async def to_question(driver: Driver) -> None:
    driver.app.session.start(RECIPE)
    for key in ("optimize", "quantize", "qat"):
        await driver.until(lambda state, key=key: state.asking == key)
        if key != "qat":
            driver.app.session.answer(True)


def training(runs: Path, script: Callable[[Driver], Awaitable[None]], place: str = MIDDLE, size: tuple[int, int] = (80, 24)) -> None:
    """Held at ``place`` of the training."""
    gate = Gate(place)

    async def go(driver: Driver) -> None:
        await to_question(driver)
        driver.app.session.answer(True)
        await driver.until(lambda state: gate.reached.is_set() and state.run.phase == "qat")
        if place == MIDDLE:
            await driver.until(lambda state: len(state.run.training.epochs) == 2 and state.run.training.now.done == 42)
        await driver.on("train")
        await driver.pilot.pause()
        await script(driver)
        gate.opened.set()
        await driver.until(lambda state: state.job is None)
        await driver.pilot.pause()

    drive(ScriptedEngine(runs, gates=(gate,)), go, size)


def test_before_the_first_step(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        assert "QAT" in driver.text and "the loss comes with the first steps" in driver.text and "first epoch" in driver.text
        await driver.press("s")
        assert "S stops and saves" in said(driver)

    training(runs, script, BEGIN)


def test_charts_and_epochs(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        assert "QAT ─ epoch 3 of 3 ─ step 42 of 51" in driver.text and "lr 0.002" in driver.text
        assert "fp32" in driver.text and "PTQ" in driver.text and "● best: epoch 2" in driver.text
        assert said(driver) == "Best so far: epoch 2, 99.31 % on validation, 0.7 points over PTQ. It is kept if you stop."
        grid = screen(driver).query_one(Grid)
        assert [row.key for row in grid.rows] == ["1", "2"] and grid.cursor == "2"
        check_text(driver, "train")
        check_svg(driver, "train")
        before = driver.text
        await driver.press("y")
        await driver.pilot.pause()
        assert screen(driver).query_one(TrainingPane).logarithmic and "loss ─ log" in driver.text and driver.text != before
        await driver.press("n")
        assert "no report yet" in said(driver)

    training(runs, script)


def test_pause_says_how_to_go_on(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("p")
        await driver.until(lambda state: state.job and state.job.paused)
        assert "p go on" in driver.text.replace("  ", " ") and "paused" in driver.text
        await driver.press("p")
        await driver.until(lambda state: state.job and not state.job.paused)
        assert "p pause" in driver.text

    training(runs, script)


def test_enough_keeps_the_best(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("s")
        await driver.until(lambda state: state.job is None or state.job.ending)
        driver.engine.gates[0].opened.set()
        await driver.until(lambda state: state.run.report)
        assert driver.state.run.measured["qat"] and not driver.state.run.stopped

    training(runs, script)


def test_stop_saves(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("S")
        await driver.until(lambda state: state.job is None)
        assert driver.state.run.stopped and "goes on with it" in said(driver) and "stopped" in driver.text

    training(runs, script)


def test_done_reopened_and_without_events(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await to_question(driver)
        await driver.press("t")
        await driver.until(lambda state: state.run.report and state.job is None)
        directory = Path(driver.state.run.directory)
        for text in (None, ""):
            if text is not None:
                (directory / "events.jsonl").write_text(text)
            driver.app.session.open(directory)
            driver.app.go("train")
            await driver.on("train")
            driver.app.refresh_state()
            await driver.pilot.pause()
            assert "3 of 3 epochs" in driver.text and "QAT is kept" in said(driver) and "99.31 %" in driver.text
        await driver.press("n")
        await driver.on("report")

    drive(ScriptedEngine(runs, met=False), script)


def test_nothing_was_trained(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await to_question(driver)
        driver.app.go("train")
        await driver.on("train")
        await driver.pilot.pause()
        assert "Nothing was trained in this run: t on the calibration (4) trains it." in driver.text
        driver.app.session.answer(False)
        await driver.until(lambda state: state.run.report and state.job is None)
        driver.app.go("train")
        await driver.on("train")
        await driver.pilot.pause()
        assert "t in the report (6)" in driver.text
        for key in ("s", "S", "p"):
            await driver.press(key)
            assert "Nothing runs" in said(driver)

    drive(ScriptedEngine(runs), script)


@pytest.mark.parametrize("size", [(120, 40), (60, 20), (40, 12)])
def test_sizes(runs: Path, size: tuple[int, int]) -> None:
    async def script(driver: Driver) -> None:
        assert "82 %" in driver.text and "fp32" in driver.text and "PTQ" in driver.text
        assert ("s stop" if size[0] > 70 else "s keep best") in driver.text
        if size == (60, 20):
            check_text(driver, "train")

    training(runs, script, size=size)
