"""The first start: three lines that go on with one key a step; and what figures and actions are, told by F1 and the palette."""

from __future__ import annotations

import asyncio
from pathlib import Path

from app_driving import Driver, drive
from scripted_engine import ScriptedEngine
from snapshots import check_text
from test_strategy_screen import measured, planned

from qtui import actions
from qtui.app import QtuiApp
from qtui.glossary import explained
from qtui.remembered import remembered
from qtui.screens.dialogs import Reading
from qtui.screens.palette import choice, rows
from qtui.session import Session
from qtui.widgets.first_steps import STEPS, FirstSteps
from qtui.widgets.table import Grid


def start(tmp_path: Path, script: object, size: tuple[int, int] = (80, 24)) -> None:
    engine = ScriptedEngine(tmp_path)
    session = Session(engine)
    app = QtuiApp(session, hertz=50, first_steps=True)

    async def go() -> None:
        async with app.run_test(size=size) as pilot:
            driver = Driver(app, pilot, engine)
            await driver.on("model")
            await driver.until(lambda state: state.machine is not None)
            await script(driver)  # type: ignore[operator]

    try:
        asyncio.run(go())
    finally:
        assert session.close(10)


def test_who_is_new_is_led_by_three_keys_and_not_again(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        assert "▸ ⏎ loads the model" in d.text
        check_text(d, "first-steps")
        await d.press("enter")
        await d.until(lambda state: state.asking == "optimize")
        await d.on("graph")
        await d.pilot.pause()
        assert "● ⏎" in d.text and "▸ n goes on" in d.text
        await d.press("n")
        await d.on("strategy")
        await d.until(lambda state: state.asking == "quantize")
        assert "▸ ? tells the keys" in d.text
        await d.press("question_mark")
        await d.press("escape")
        await d.until(lambda _: not d.app.screen.query(FirstSteps))
        assert remembered("first steps") == len(STEPS)

    start(tmp_path, script)

    async def again(d: Driver) -> None:
        assert not d.app.screen.query(FirstSteps)

    start(tmp_path, again)


def test_esc_takes_the_first_steps_away_for_good(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await d.press("escape")
        await d.until(lambda _: not d.app.screen.query(FirstSteps))

    start(tmp_path, script)
    assert remembered("first steps") == len(STEPS)


def test_f1_tells_what_the_figures_of_the_table_mean(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await measured(d)
        await d.press("f1")
        assert isinstance(d.app.screen, Reading) and "what the figures mean" in d.text
        assert "weights" in d.text
        await d.press("escape", "4")
        await d.on("calibrate")
        await d.pilot.pause()
        grid = d.app.screen.query_one("#layers", Grid)
        await d.press("full_stop")
        assert grid.order is not None
        await d.press("f1")
        await d.pilot.pause()
        first = explained(grid.given[0], "calibrate", grid.order.column)[0][0]
        lines = d.text.splitlines()
        assert first in lines[next(place for place, line in enumerate(lines) if "what the figures mean" in line) + 1]

    drive(ScriptedEngine(tmp_path), script)


def test_each_explanation_is_two_sentences() -> None:
    from qtui import glossary

    for key, said in {**glossary._EVERYWHERE, **glossary._OF_SCREEN}.items():
        assert said.count(". ") == 1 and said.endswith("."), key


def test_enter_on_a_measured_layer_opens_it(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await measured(d)
        d.app.go("calibrate")
        await d.on("calibrate")
        await d.pilot.pause()
        name = d.app.screen.query_one("#layers", Grid).cursor
        await d.press("enter")
        assert isinstance(d.app.screen, Reading) and f"layer ─ {name}" in d.text

    drive(ScriptedEngine(tmp_path), script)


def test_the_palette_has_every_action_of_every_screen(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        found = {row.key: row.cells[0] for row in rows("strategy", d.state, "")}
        labels = set(found.values())
        for action in actions.every():
            if action.id not in ("palette", "back"):
                assert action.label.removesuffix(" ▸") in labels, action
        there = next(key for key, label in found.items() if label == "side by side" or "two runs" in str(label).lower())
        assert choice(there).stage == "report"
        await d.press("ctrl+p")
        await d.pilot.pause()
        for key in "make it the":
            await d.press("space" if key == " " else key)
        assert "Strategy ▸ Sensitivity" in d.text
        await d.press("enter")
        await d.on("strategy")

    drive(ScriptedEngine(tmp_path), script)
