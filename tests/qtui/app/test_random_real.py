"""Random keys, clicks, pastes and window sizes over all screens with the real engine: no exception, and no edit that the sentence did not
announce. ``QTUI_RANDOM=20000 uv run pytest -m slow tests/qtui/app/test_random_real.py`` is the long form."""

from __future__ import annotations

import asyncio
import os
import random
import time
import traceback
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from test_random_keys import KEYS, SIZES
from textual.events import Key, Paste
from textual.pilot import Pilot

from qtui import actions
from qtui.app import QtuiApp
from qtui.draft import Draft
from qtui.screens.strategy import StrategyScreen
from qtui.screens.strategy_keys import EditKeys
from qtui.session import Session
from qtui.text import in_block
from qtui.widgets.sentence import Sentence

COUNT = int(os.environ.get("QTUI_RANDOM", "600"))
PASTES = ("simplecnn", "'/no where/a.pt'", "0.20 MB", "drop:0.01", "\x1b[31mred", "4.5 bpw", "é漢\n\n", "w" * 300)
EDITS = {name.removeprefix("do_") for name in vars(EditKeys) if name.startswith("do_") and "pick" not in name}


class Announced:
    """What the sentence of the strategy said an edit would be for, before a key."""

    def __init__(self, app: QtuiApp) -> None:
        screen = app.screen
        self.draft: Draft | None = app.state.run.draft
        self.paths: Collection[str] | None = None
        self.said = ""
        if isinstance(screen, StrategyScreen) and self.draft is not None and not screen.strip.display:
            entry = screen._entry
            self.paths = self.draft.marked or (entry.paths if entry is not None else ())
            self.said = screen.query_one(Sentence)._text
            self.names = (
                [f"{len(self.draft.marked)} marked"]
                if self.draft.marked
                else [entry.name, entry.key, *(in_block(path) for path in entry.paths[:1])]
                if entry
                else []
            )

    def check(self, app: QtuiApp, key: str) -> bool:
        """Whether an edit was made by a key of the table; it must be of what was announced."""
        after = app.state.run.draft
        if self.draft is None or after is None or self.paths is None or after.specs.keys() != self.draft.specs.keys():
            return False
        changed = {path for path, spec in after.specs.items() if spec != self.draft.specs[path]}
        if not changed or after.past[: len(self.draft.past)] != self.draft.past or len(after.past) != len(self.draft.past) + 1:
            return False
        assert changed <= set(self.paths), (key, changed, self.said)
        assert any(name in self.said for name in self.names) or "as proposed" in self.said, (key, changed, self.said)
        return True


@pytest.mark.slow  # Real runs, one after the other.
def test_whatever_is_done_nothing_breaks_and_no_edit_is_unannounced(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dice = random.Random(int(os.environ.get("QTUI_SEED", "1")))
    session = Session()
    app = QtuiApp(session, hertz=20, first_steps=True)
    # The palette finds this one too.
    monkeypatch.setattr(app, "do_quit", lambda: None)
    ended: list[str] = []
    monkeypatch.setattr(app, "exit", lambda *given, **more: ended.append("".join(traceback.format_stack(limit=8))))
    done: list[str] = []
    edits = 0
    seen: set[str] = set()
    single = {key for action in app_actions() for key in action.keys if action.id in EDITS}

    async def go() -> None:
        nonlocal edits
        async with app.run_test(size=(80, 24)) as pilot:
            for index in range(COUNT):
                what = dice.random()
                if index % 100 == 0:
                    await led(app, pilot, (index // 100) % 4)
                before = Announced(app)
                if what < 0.03:
                    width, height = dice.choice(SIZES)
                    await pilot.resize_terminal(width, height)
                    done.append(f"{width}x{height}")
                elif what < 0.06:
                    text = dice.choice(PASTES)
                    target = app.focused or app.screen
                    target.post_message(Paste(text))
                    done.append(f"paste {text!r}")
                    await pilot.pause()
                elif what < 0.16:
                    x, y = dice.randrange(app.size.width), dice.randrange(app.size.height)
                    done.append(f"click {x},{y}")
                    await pilot.click(offset=(x, y))
                else:
                    key = dice.choice(("n", "n", "enter", *KEYS, *single))
                    done.append(key)
                    event = Key(key, key if len(key) == 1 else None)
                    event.set_sender(app)
                    assert app._driver is not None
                    app._driver.send_message(event)
                    await pilot.pause()
                    if key in single:
                        edits += before.check(app, key)
                if app.stage_screen is not None:
                    seen.add(type(app.stage_screen).__name__)
                assert app._exception is None and app.is_running and not ended, (ended, done[-30:])
                if index % 50 == 0:
                    await asyncio.sleep(0.2)

    began = time.monotonic()
    try:
        asyncio.run(go())
    finally:
        session.stop()
        assert session.close(60)
    print(f"{COUNT} in {time.monotonic() - began:.0f} s, {edits} edits, screens: {', '.join(sorted(seen))}")
    assert edits or COUNT < 500


async def led(app: QtuiApp, pilot: Pilot[int], how_far: int) -> None:
    """A run that waits at its strategy, or has gone on from there, so that there is always something to work on."""
    for _ in range(4):
        await pilot.press("escape")
    app.session.stop()
    await until(app, pilot, lambda: app.state.job is None)
    app.session.dismiss()
    app.session.start({"model": "simplecnn", "data": {"name": "digits", "limit": 64, "calibration": 64}})
    for question, answer in (("optimize", True), ("quantize", True), ("qat", False))[: how_far + 1]:
        await until(app, pilot, lambda question=question: app.state.asking == question)
        if question != "quantize" or how_far > 1:
            app.session.answer(answer)
    await until(app, pilot, lambda: app.state.asking is not None or app.state.job is None)
    app.go(("graph", "strategy", "strategy", "report")[how_far] if app.state.run.draft else "model")
    await pilot.pause()


async def until(app: QtuiApp, pilot: Pilot[int], true: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not true() and time.monotonic() < end:
        await pilot.pause(0.05)
    app.refresh_state()


def app_actions() -> tuple[actions.Action, ...]:
    return actions.own("strategy")
