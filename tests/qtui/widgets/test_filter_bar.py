"""The line that narrows a list down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widgets import Input

from qtui.widgets.filter_bar import FilterBar, matches
from qtui.widgets.table import Column, Grid, Row

NAMES = ("conv1", "bn1", "conv2")


class Listing(App[None]):
    BINDINGS = [("slash", "open"), ("q", "quit_now"), ("1", "quit_now"), ("escape", "all")]

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.pressed = 0

    def compose(self) -> ComposeResult:
        yield Grid()
        yield FilterBar()

    def on_mount(self) -> None:
        self.fill()
        self.query_one(Grid).focus()

    def fill(self) -> None:
        bar = self.query_one(FilterBar)
        kept = [name for name in NAMES if matches(bar.text, (name,))]
        self.query_one(Grid).show([Column("name", "name")], [Row(name, (name,)) for name in kept])
        bar.count(len(kept), len(NAMES))

    def on_filter_bar_changed(self, event: FilterBar.Changed) -> None:
        self.texts.append(event.text)
        self.fill()

    def action_open(self) -> None:
        self.query_one(FilterBar).open()

    def action_quit_now(self) -> None:
        self.pressed += 1

    def action_all(self) -> None:
        self.query_one(FilterBar).clear()


def run(script: Callable[[Listing, Pilot[None]], Awaitable[None]]) -> None:
    async def go() -> None:
        app = Listing()
        async with app.run_test(size=(50, 8)) as pilot:
            await script(app, pilot)

    asyncio.run(go())


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [("", True), ("CONV", True), ("conv call", True), ("conv relu", False), ("  ", True), ("call_module", True)],
)
def test_each_word_must_stand_in_a_field(wanted: str, kept: bool) -> None:
    assert matches(wanted, ("layer1.conv1", "call_module")) is kept


def test_typing_narrows_and_enter_keeps() -> None:
    async def script(app: Listing, pilot: Pilot[None]) -> None:
        bar, grid = app.query_one(FilterBar), app.query_one(Grid)
        assert not bar.display and grid.has_focus
        await pilot.press("slash")
        assert bar.display and app.query_one(Input).has_focus
        await pilot.press("c", "1", "q", "backspace")
        assert app.pressed == 0 and bar.text == "c1"
        await pilot.press("backspace")
        assert [row.key for row in grid.rows] == ["conv1", "conv2"]
        assert bar.filtered(2, 3) == "2 of 3"
        await pilot.press("enter")
        assert grid.has_focus and not bar.display and bar.text == "c"
        await pilot.press("q")
        assert app.pressed == 1
        await pilot.press("escape")
        assert bar.text == "" and len(grid.rows) == 3 and bar.filtered(3, 3) == "3"

    run(script)


def test_escape_clears_and_gives_the_focus_back() -> None:
    async def script(app: Listing, pilot: Pilot[None]) -> None:
        bar, grid = app.query_one(FilterBar), app.query_one(Grid)
        await pilot.press("slash", "b", "n", "escape")
        assert bar.text == "" and grid.has_focus and not bar.display
        assert len(grid.rows) == 3 and app.texts[-1] == ""
        assert bar.clear() is False

    run(script)


def test_down_goes_to_the_list_and_opening_again_goes_on_with_the_text() -> None:
    async def script(app: Listing, pilot: Pilot[None]) -> None:
        bar, grid = app.query_one(FilterBar), app.query_one(Grid)
        await pilot.press("slash", "2", "down")
        assert grid.has_focus and [row.key for row in grid.rows] == ["conv2"]
        await pilot.press("slash")
        assert app.query_one(Input).value == "2"
        await pilot.press("x", "enter")
        assert bar.text == "2x" and grid.rows == ()
        await pilot.press("slash", "escape")
        assert len(grid.rows) == 3

    run(script)
