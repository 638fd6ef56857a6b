"""Panels while work goes on behind them."""

from __future__ import annotations

from pathlib import Path

from app_driving import Driver, drive
from scripted_engine import Gate, ScriptedEngine

from qtui.screens.dialogs import Confirm, Reading


def test_a_panel_stays_until_it_is_closed_and_the_stage_changes_then(runs: Path) -> None:
    gate = Gate("calibrate 128")

    async def script(driver: Driver) -> None:
        await driver.press("enter")
        await driver.until(lambda state: state.asking == "optimize")
        await driver.on("graph")
        await driver.press("n")
        await driver.until(lambda state: state.asking == "quantize")
        await driver.on("strategy")
        await driver.press("n")
        await driver.on("calibrate")
        await driver.press("q")
        assert isinstance(driver.app.screen, Confirm)
        gate.opened.set()
        await driver.until(lambda state: state.asking == "qat")
        assert isinstance(driver.app.screen, Confirm)
        await driver.press("n", "t", "question_mark")
        assert isinstance(driver.app.screen, Reading)
        await driver.until(lambda state: state.run.report is not None)
        assert isinstance(driver.app.screen, Reading)
        await driver.press("escape")
        await driver.on("report")

    drive(ScriptedEngine(runs, gates=(gate,)), script)


def test_the_machine_is_told_from_any_screen(runs: Path) -> None:
    async def script(driver: Driver) -> None:
        await driver.until(lambda state: state.machine is not None)
        await driver.press("M")
        assert isinstance(driver.app.screen, Reading)
        shown = "\n".join("".join(segment.text for segment in strip) for strip in driver.app.screen._compositor.render_strips())
        assert "this machine" in shown and "AVX512" in shown and "qconv_pointwise" in shown
        await driver.press("escape")
        assert not isinstance(driver.app.screen, Reading)

    drive(ScriptedEngine(runs), script)
