"""Driving the app by keyboard in a test: no terminal, no PyTorch, a scripted engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from scripted_engine import ScriptedEngine
from textual.events import Key
from textual.pilot import Pilot
from textual.widgets import Input

from qtui.app import QtuiApp
from qtui.session import Session
from qtui.state import State

_CHARACTERS = {
    "question_mark": "?", "slash": "/", "left_square_bracket": "[", "space": " ", "minus": "-", "colon": ":", "enter": "\r", "tab": "\t",
}  # fmt: skip


@dataclass
class Driver:
    """``press`` keys, then ``until`` the state is as expected: assert on state first, on what is painted second."""

    app: QtuiApp
    pilot: Pilot[int]
    engine: ScriptedEngine

    @property
    def state(self) -> State:
        return self.app.session.state

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    def type(self, *keys: str) -> None:
        """Press keys as fast as they come, without waiting for what they do."""
        for key in keys:
            event = Key(key, key if len(key) == 1 else _CHARACTERS.get(key))
            event.set_sender(self.app)
            assert self.app._driver is not None
            self.app._driver.send_message(event)

    async def fill(self, text: str) -> None:
        """Put ``text`` into the line of the panel in front, at once, and take it."""
        await self.pilot.pause()
        self.app.screen.query_one(Input).value = text
        await self.press("enter")
        await self.pilot.pause()

    async def until(self, true: Callable[[State], object], seconds: float = 40.0) -> None:
        end = time.monotonic() + seconds
        while not true(self.state):
            if time.monotonic() > end:
                raise AssertionError(
                    f"not so after {seconds} s: {self.state.job}, at {self.state.run.at}, {self.state.problem}\n{self.text}"
                )
            await self.pilot.pause(0.02)
        self.app.refresh_state()
        await self.pilot.pause()

    async def on(self, stage: str) -> None:
        """Wait until a stage's screen is in front."""
        await self.until(lambda _: self.app.stage_screen is not None and self.app.stage_screen.stage == stage)

    @property
    def text(self) -> str:
        """The screen as plain lines."""
        return screen_text(self.app)

    async def resize(self, width: int, height: int) -> None:
        await self.pilot.resize_terminal(width, height)
        await self.pilot.pause()


def screen_text(app: QtuiApp) -> str:
    lines = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in lines[: app.size.height])


def drive(
    engine: ScriptedEngine, script: Callable[[Driver], Awaitable[None]], size: tuple[int, int] = (80, 24), hertz: float = 50,
    estimates: bool = False,
) -> QtuiApp:  # fmt: skip
    """Run ``script`` in the app with that engine, and end both."""
    session = Session(engine)
    app = QtuiApp(session, hertz=hertz, estimates=estimates)

    async def go() -> None:
        async with app.run_test(size=size) as pilot:
            driver = Driver(app, pilot, engine)
            await driver.on("model")
            await driver.until(lambda state: state.machine is not None)
            await script(driver)

    try:
        asyncio.run(go())
    finally:
        for gate in engine.gates:
            gate.opened.set()
        assert session.close(10)
    return app


def runs_in(monkeypatch_setenv: Callable[[str, str], None], root: Path) -> Path:
    """Point the app's runs and cache into a test's folder."""
    monkeypatch_setenv("QTUI_RUNS", str(root / "runs"))
    return root / "runs"
