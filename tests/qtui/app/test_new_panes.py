"""The budget, the microscope, the options and the first steps in each theme and without colour, at 80x24 and 160x48."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from app_driving import Driver, drive
from scripted_engine import ScriptedEngine
from snapshots import check_svg
from test_strategy_screen import planned

from qtui.themes import NAMES
from qtui.widgets.budget_strip import BudgetStrip

Script = Callable[[Driver], Awaitable[None]]


async def budget(d: Driver) -> None:
    await planned(d)
    await d.press("P")
    strip = d.app.screen.query_one(BudgetStrip)
    await d.until(lambda _: strip.front is not None)
    await d.pilot.pause()
    await d.press("left")


async def microscope(d: Driver) -> None:
    await planned(d)
    await d.press("down", "down", "i")
    await d.until(lambda state: "conv2" in state.run.inspected and state.asking == "quantize")
    await d.pilot.pause()


async def options(d: Driver) -> None:
    await d.press("s")
    await d.pilot.pause()


PANES: dict[str, Script] = {"budget": budget, "microscope": microscope, "options": options}


@pytest.mark.parametrize("size", [(80, 24), (160, 48)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("look", [*NAMES, "no-color"])
@pytest.mark.parametrize("pane", PANES)
def test_a_pane_looks_as_it_did(pane: str, look: str, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTUI_THEME", look) if look != "no-color" else monkeypatch.setenv("NO_COLOR", "1")

    async def script(d: Driver) -> None:
        await PANES[pane](d)
        check_svg(d, f"{pane}-{look}")

    drive(ScriptedEngine(tmp_path), script, size)
