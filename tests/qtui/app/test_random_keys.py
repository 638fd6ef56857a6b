"""Whatever is typed, in whatever order, on whatever screen: no exception, and the app still answers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from app_driving import Driver, drive
from scripted_engine import ScriptedEngine

from qtui import actions
from qtui.stage_table import ids

KEYS = sorted({key for action in actions.every() for key in action.keys} - {"q", "ctrl+q", "ctrl+c"}) + [
    "up", "down", "left", "right", "pageup", "pagedown", "home", "end", "j", "k", "h", "g", "G", "tab", "shift+tab", "escape", "escape",
    "enter", "enter", "n", "n", "y", "backspace", "delete", "Z", "é", "漢", "0", "7", "ctrl+a", "ctrl+e", "f5", "minus", "colon",
]  # fmt: skip
SIZES = ((80, 24), (120, 40), (60, 20), (40, 12), (30, 8), (200, 60))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_keys_never_break_it(runs: Path, seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dice = random.Random(seed)
    monkeypatch.chdir(tmp_path)
    engine = ScriptedEngine(runs, met=seed % 2 == 0)
    pressed: list[str] = []

    async def script(driver: Driver) -> None:
        for index in range(1000):
            key = dice.choice(KEYS)
            pressed.append(key)
            driver.type(key)
            if index % 20 == 0:
                await driver.pilot.pause()
            if index % 97 == 0:
                await driver.resize(*dice.choice(SIZES))
            if index % 61 == 0:
                driver.app.refresh_state()
            assert driver.app.is_running and driver.app._exception is None, pressed[-20:]
        await driver.resize(80, 24)
        for _ in range(6):
            driver.type("escape")
            await driver.pilot.pause()
        await driver.press("1")
        await driver.on("model")

    drive(engine, script)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ids())
def test_every_key_on_every_screen_of_a_finished_run(runs: Path, stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    engine = ScriptedEngine(runs)

    async def script(driver: Driver) -> None:
        driver.app.session.start({"model": "simplecnn", "data": {"name": "digits"}})
        for key in ("optimize", "quantize", "qat"):
            await driver.until(lambda state, key=key: state.asking == key)
            driver.app.session.answer(True)
        await driver.until(lambda state: state.run.report)
        own = [key for action in actions.of(stage) for key in action.keys if action.id != "quit"]
        for key in (*own, "left", "right", "pagedown", "end", "g", "tab", "enter", "Z", "漢"):
            driver.app.go(stage)  # type: ignore[arg-type]
            await driver.on(stage)
            driver.type(key, "escape", "escape", "escape")
            await driver.pilot.pause()
            assert driver.app._exception is None, key

    drive(engine, script)
