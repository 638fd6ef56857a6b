"""Grid: the cursor stays on its row, and only what changed is painted."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from rich.cells import cell_len
from textual.app import App, ComposeResult
from textual.pilot import Pilot

from qtui.drawing.columns import arrange
from qtui.drawing.rows import measure
from qtui.drawing.spans import plain
from qtui.drawing.table_lines import header, message, row_line
from qtui.widgets.table import Cell, Column, Grid, Row

COLUMNS = (
    Column("op", "opcode", priority=1),
    Column("name", "name", grow=1, min=8, priority=9),
    Column("target", "target", priority=0),
    Column("shape", "shape", align="right", priority=2),
    Column("time", "time", priority=3),
)


def row(index: int, percent: int = 40, **more: Any) -> Row:
    cells = ("call_module", f"layer{index}.0.block.conv", "torch.relu", f"1×{index}×32", Cell(f"{percent} %", bar=percent / 100))
    return Row(f"r{index}", cells, **more)


def rows(count: int) -> list[Row]:
    return [row(index) for index in range(count)]


class Host(App[None]):
    CSS = "#other { height: 1; }"

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.grid = Grid(**options)
        self.heard: list[tuple[str, str]] = []
        self.painted: list[int] = []
        real = self.grid.render_line

        def counted(y: int) -> Any:
            self.painted.append(y)
            return real(y)

        self.grid.render_line = counted  # type: ignore[method-assign]

    def compose(self) -> ComposeResult:
        yield self.grid

    def on_grid_moved(self, message: Grid.Moved) -> None:
        self.heard.append(("moved", message.key))

    def on_grid_chosen(self, message: Grid.Chosen) -> None:
        self.heard.append(("chosen", message.key))

    def screen_text(self) -> list[str]:
        return [self.grid.render_line(y).text for y in range(self.grid.size.height)]


def drive(steps: Callable[[Host, Pilot[None]], Awaitable[None]], size: tuple[int, int] = (80, 24), **options: Any) -> None:
    async def main() -> None:
        app = Host(**options)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await steps(app, pilot)

    asyncio.run(main())


@pytest.mark.parametrize("width", range(1, 140, 7))
@pytest.mark.parametrize("skipped", [None, 0, 3])
def test_every_line_is_as_wide_as_the_table(width: int, skipped: int | None) -> None:
    wide = Row("w", ("画像画像画像画像", "\x1b[31mred\x1b[0m\n", Cell("x" * 99, bar=2.0)), glyph="┌ ◆", indent=3, marked=True)
    found = (*rows(12), wide, Row("few", ("one",)))
    for marks, glyph in ((False, 0), (True, 3)):
        plan = arrange(COLUMNS, measure(COLUMNS, found), width, marks=marks, glyph=glyph, skipped=skipped)
        assert cell_len(plain(header(plan, COLUMNS))) == width
        for one in found:
            for cursor in (False, True):
                text = plain(row_line(plan, COLUMNS, one, cursor=cursor))
                assert cell_len(text) == width
                assert text.isprintable()
    assert all(cell_len(plain(line)) == width for line in message("Nothing here: 画像 press n to go on.", width, 5))


def test_the_cursor_is_in_view_from_the_first_frame() -> None:
    async def main() -> None:
        app = Host()
        app.grid.show(COLUMNS, rows(100))
        app.grid.move_to("r60")
        async with app.run_test(size=(80, 24)) as pilot:
            await pilot.pause()
            assert any(line.startswith("▌") and "layer60." in line for line in app.screen_text())
            await pilot.resize_terminal(80, 8)
            await pilot.pause()
            assert any(line.startswith("▌") and "layer60." in line for line in app.screen_text())

    asyncio.run(main())


def test_columns_of_low_priority_go_first() -> None:
    found = tuple(rows(5))
    shown = {}
    for width in (120, 54, 40, 22, 3):
        plan = arrange(COLUMNS, measure(COLUMNS, found), width)
        shown[width] = [COLUMNS[place.index].key for place in plan.places]
    assert shown[120] == ["op", "name", "target", "shape", "time"]
    assert shown[54] == ["op", "name", "shape", "time"]
    assert shown[40] == ["name", "shape", "time"]
    assert shown[22] == ["name", "time"]
    assert shown[3] == ["name"]


def test_figures_stand_under_right_aligned_titles() -> None:
    columns = (Column("a", "layer"), Column("b", "params", align="right"))
    found = (Row("1", ("conv1", "2 %")), Row("2", ("fc1", "96.2 %")))
    plan = arrange(columns, measure(columns, found), 40)
    lines = [plain(header(plan, columns)).rstrip(), *(plain(row_line(plan, columns, one)).rstrip() for one in found)]
    assert lines == [" layer  params", " conv1     2 %", " fc1    96.2 %"]


def test_growing_columns_share_what_is_left() -> None:
    columns = (Column("a", "a", width=4, grow=1), Column("b", "b", width=4, grow=3), Column("c", "c", width=4))
    plan = arrange(columns, measure(columns, ()), 2 + 4 * 3 + 4 + 20)
    assert [place.width for place in plan.places] == [9, 19, 4]


def test_bars_share_one_scale_in_a_column() -> None:
    columns = (Column("t", "time"),)
    found = (Row("1", (Cell("100 %", bar=1.0),)), Row("2", (Cell("40 %", bar=0.4),)))
    plan = arrange(columns, measure(columns, found), 30)
    assert [plain(row_line(plan, columns, one)).rstrip() for one in found] == [" █████ 100 %", " ██     40 %"]


def test_the_cursor_stays_on_its_row_and_place() -> None:
    async def steps(app: Host, pilot: Pilot[None]) -> None:
        grid = app.grid
        grid.focus()
        grid.show(COLUMNS, rows(100))
        grid.move_to("r50")
        await pilot.pause()
        top = grid.scroll_offset.y
        grid.show(COLUMNS, [Row("new", ("x",)), Row("newer", ("x",)), *rows(100)])
        await pilot.pause()
        assert grid.cursor == "r50" and grid.scroll_offset.y == top + 2
        grid.show(COLUMNS, [one for one in rows(100) if one.key != "r50"])
        await pilot.pause()
        assert grid.cursor == "r51"
        grid.show(COLUMNS, rows(3))
        await pilot.pause()
        assert grid.cursor == "r2" and grid.scroll_offset.y == 0
        grid.show(COLUMNS, [])
        assert grid.cursor is None
        assert app.heard[-1] == ("moved", "r2")

    drive(steps)


def test_what_is_equal_is_not_painted() -> None:
    async def steps(app: Host, pilot: Pilot[None]) -> None:
        app.grid.show(COLUMNS, rows(99))
        await pilot.pause()
        app.painted.clear()
        app.grid.show(COLUMNS, rows(99))
        await pilot.pause()
        assert app.painted == []
        app.grid.show(COLUMNS, [row(i, 41 if i in (3, 60) else 40) for i in range(99)])
        await pilot.pause()
        assert app.painted == [4]
        app.painted.clear()
        app.grid.show(COLUMNS, [row(i, 41 if i in (3, 60) else 40) for i in range(100)])
        await pilot.pause()
        assert app.painted == []

    drive(steps)


def test_a_live_table_does_not_dance() -> None:
    async def steps(app: Host, pilot: Pilot[None]) -> None:
        app.grid.show(COLUMNS, [row(0, 100), row(1, 7)])
        await pilot.pause()
        first = app.screen_text()[0]
        app.grid.show(COLUMNS, [row(0, 9), row(1, 7)])
        await pilot.pause()
        assert app.screen_text()[0] == first

    drive(steps)


def test_many_rows_are_shown_at_once_and_a_step_paints_two_lines() -> None:
    async def steps(app: Host, pilot: Pilot[None]) -> None:
        many = rows(10_000)
        took = []
        # What else the machine does is no time of this, nor what the collector has to do for all that other tests have left.
        gc.collect()
        gc.disable()
        try:
            for part in (many, many[1:], many[2:], many[3:], many[4:]):
                started = time.process_time()
                app.grid.show(COLUMNS, part)
                took.append(time.process_time() - started)
        finally:
            gc.enable()
        assert min(took) < 0.25
        app.grid.focus()
        await pilot.pause()
        app.grid.move_to("r7")
        await pilot.pause()
        app.painted.clear()
        await pilot.press("down")
        assert sorted(set(app.painted)) == sorted(app.painted) and len(app.painted) == 2

    drive(steps)


def test_keys() -> None:
    async def steps(app: Host, pilot: Pilot[None]) -> None:
        grid = app.grid
        grid.show(COLUMNS, rows(100))
        grid.focus()
        seen = []
        for key in ("down", "j", "up", "k", "pagedown", "pageup", "end", "home", "G", "g", "up", "enter"):
            await pilot.press(key)
            seen.append(grid.cursor)
        assert seen == ["r1", "r2", "r1", "r0", "r22", "r0", "r99", "r0", "r99", "r0", "r0", "r0"]
        assert app.heard[-1] == ("chosen", "r0")
        assert app.heard[0] == ("moved", "r0")

    drive(steps)


def test_separators_are_passed_over() -> None:
    async def steps(app: Host, pilot: Pilot[None]) -> None:
        line = [Row(f"s{i}", ("──",), role="dim", selectable=False) for i in range(3)]
        grid = app.grid
        grid.show(COLUMNS, [line[0], row(1), line[1], row(2), line[2]])
        grid.focus()
        assert grid.cursor == "r1"
        seen = []
        for key in ("down", "down", "end", "up", "up", "home"):
            await pilot.press(key)
            seen.append(grid.cursor)
        assert seen == ["r2", "r2", "r2", "r1", "r1", "r1"]
        assert not grid.move_to("s1") and not grid.move_to("nowhere") and grid.move_to("r2")
        await pilot.click(grid, offset=(5, 3))
        assert grid.cursor == "r2"
        grid.show(COLUMNS, line)
        assert grid.cursor is None
        await pilot.press("down", "enter")
        assert grid.cursor is None

    drive(steps)


def test_the_mouse() -> None:
    async def steps(app: Host, pilot: Pilot[None]) -> None:
        app.grid.show(COLUMNS, rows(100))
        await pilot.pause()
        await pilot.click(app.grid, offset=(5, 4))
        assert app.grid.cursor == "r3"
        await pilot.click(app.grid, offset=(5, 0))
        assert app.grid.cursor == "r3" and ("chosen", "r3") not in app.heard
        await pilot.click(app.grid, offset=(5, 6), times=2)
        assert app.heard[-1] == ("chosen", "r5")

    drive(steps)


def test_an_empty_table_says_what_to_do() -> None:
    async def steps(app: Host, pilot: Pilot[None]) -> None:
        app.grid.empty = "Press n to go on."
        await pilot.pause()
        text = app.screen_text()
        assert text[11].strip() == "Press n to go on." and len("".join(text).strip()) == len("Press n to go on.")
        app.grid.show(COLUMNS, rows(2))
        await pilot.pause()
        assert "opcode" in app.screen_text()[0]
        app.grid.show(COLUMNS, [])
        await pilot.pause()
        assert app.screen_text() == text

    drive(steps)


def test_left_and_right_belong_to_the_screen_unless_columns_scroll() -> None:
    async def kept(app: Host, pilot: Pilot[None]) -> None:
        app.grid.show(COLUMNS, rows(2))
        app.grid.focus()
        before = app.screen_text()
        await pilot.press("right")
        assert app.screen_text() == before and "›" not in before[0]

    async def scrolled(app: Host, pilot: Pilot[None]) -> None:
        app.grid.show(COLUMNS, rows(2))
        app.grid.focus()
        await pilot.pause()
        assert app.screen_text()[0].endswith("›") and "time" not in app.screen_text()[0]
        await pilot.press("right", "right", "right", "right")
        text = app.screen_text()[0]
        assert text.startswith("‹") and "opcode" in text and "time" in text and "›" not in text
        await pilot.press("left", "left", "left")
        assert app.screen_text()[0].endswith("›")

    drive(kept, (40, 10))
    drive(scrolled, (40, 10), scroll_columns=True)


def test_a_narrower_terminal_drops_columns() -> None:
    async def steps(app: Host, pilot: Pilot[None]) -> None:
        app.grid.show(COLUMNS, rows(30))
        await pilot.pause()
        assert "target" in app.screen_text()[0]
        await pilot.resize_terminal(40, 10)
        await pilot.pause()
        assert "target" not in app.screen_text()[0] and "name" in app.screen_text()[0]
        assert {cell_len(line) for line in app.screen_text()} == {39}
        app.grid.show(COLUMNS, rows(3))
        await pilot.pause()
        assert {cell_len(line) for line in app.screen_text()} == {40}

    drive(steps)


def test_the_cursor_row_can_be_told_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def steps(app: Host, pilot: Pilot[None]) -> None:
        app.grid.show(COLUMNS, [row(0, marked=True), row(1)])
        app.grid.focus()
        await pilot.pause()
        line = app.grid.render_line(1)
        assert line.text.startswith("▌* ")
        assert all(segment.style is not None and segment.style.reverse for segment in line)
        assert not any(segment.style is not None and segment.style.reverse for segment in app.grid.render_line(2))

    drive(steps)
