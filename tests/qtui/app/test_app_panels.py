"""Panels while work goes on behind them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from app_driving import Driver, drive
from scripted_engine import Gate, ScriptedEngine

from qtui import actions
from qtui.screens import make
from qtui.screens.dialogs import Choose, Confirm, Panel, Prompt, Reading, Several
from qtui.stage_table import ids
from qtui.state import Stage
from qtui.widgets.table import Column, Row


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


def test_keys_that_arrive_before_a_panel_is_composed_do_no_harm(runs: Path) -> None:
    def panels() -> tuple[Panel[Any], ...]:
        row = Row("a", ("a",))
        column = Column("text", "", grow=1)
        return Reading("t", "x"), Several("t", (column,), (row,), (), "h"), Choose("t", (("a", "a"),)), Confirm("t", "x"), Prompt("t", "x")

    async def script(driver: Driver) -> None:
        for panel in panels():
            for bindings in panel._bindings.key_to_bindings.values():
                for binding in bindings:
                    early = next(fresh for fresh in panels() if type(fresh) is type(panel))
                    driver.app.push_screen(early)
                    assert not early.is_mounted
                    await driver.app.run_action(binding.action, early)
                    await driver.pilot.pause()
                    assert driver.app._exception is None
                    if driver.app.screen is early:
                        await driver.press("escape")
        assert driver.app.stage_screen is driver.app.screen

    drive(ScriptedEngine(runs), script)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ids()[1:])
def test_keys_that_arrive_before_a_stage_is_composed_do_no_harm(runs: Path, stage: Stage) -> None:
    async def script(driver: Driver) -> None:
        for action in actions.of(stage):
            if action.id in ("quit", "stop"):
                continue
            driver.app.go("model")
            await driver.on("model")
            await driver.app.remove_mode(stage)
            driver.app.add_mode(stage, partial(make, stage))
            driver.app.go(stage)
            early = driver.app.stage_screen
            assert early is not None and early.stage == stage and not early.is_mounted
            early.action_do(action.id)
            early.explain("too early")
            await driver.pilot.pause()
            assert driver.app._exception is None
            await driver.press("escape")

    drive(ScriptedEngine(runs), script)


def test_what_is_not_painted_is_not_taken_for_shown(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that comes while many changes are gathered is dropped: its cells differ still from what the terminal shows."""

    async def script(driver: Driver) -> None:
        app, taken = driver.app, []
        monkeypatch.setattr(app._canvas, "changed", lambda update: taken.append(update))
        frame = app.screen._compositor.render_full_update()
        with app.batch_update():
            app._display(app.screen, frame)
        assert frame not in taken
        app._display(app.screen, frame)
        assert frame in taken

    drive(ScriptedEngine(runs), script)
