"""What can be done with the table in front, on every screen: order it, copy a row of it, write it to a file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from engine.errors import EngineError
from engine.paths import cache_dir, save
from qtui import terminal
from qtui.drawing.rows import Column, Row, cell_at, text_of
from qtui.drawing.sorting import Order, next_order

if TYPE_CHECKING:
    from qtui.screens.base import StageScreen
    from qtui.state import State
    from qtui.widgets.table import Grid

_TREE = "The lines of this list stand beneath one another: their order is that of the model"
_NO_TABLE = "There is no table here"


def row_text(columns: Sequence[Column], row: Row) -> str:
    """A row as one line, its cells with tabs between them."""
    return "\t".join(_texts(columns, row))


def _texts(columns: Sequence[Column], row: Row) -> list[str]:
    return [text_of(cell_at(row, index)).strip() for index in range(len(columns))]


def as_csv(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table as CSV (RFC 4180) with its titles; a tree's lines are indented by two spaces a level."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow([column.title or column.key for column in columns])
    for row in rows:
        texts = _texts(columns, row)
        writer.writerow(["  " * row.indent + texts[0], *texts[1:]] if texts else [])
    return file.getvalue()


class TableActions:
    """A part of the app."""

    if TYPE_CHECKING:
        screen: Any

        @property
        def state(self) -> State: ...

        @property
        def stage_screen(self) -> StageScreen | None: ...

    @property
    def _table(self) -> Grid | None:
        """The table with the focus, or else the first that is shown and has rows."""
        from qtui.widgets.table import Grid

        focused = self.screen.focused
        if isinstance(focused, Grid):
            return focused
        shown = (grid for grid in self.screen.query(Grid) if grid.display and grid.rows)
        return next(shown, None)

    def _explain(self, text: str) -> None:
        if hasattr(self.screen, "explain"):
            self.screen.explain(text)

    def do_sort(self) -> None:
        if (grid := self._table) is None:
            self._explain(_NO_TABLE)
        elif not grid.sort(order := next_order(grid.given[0], grid.order)):
            self._explain(_TREE if len(grid.rows) > 1 else _NO_TABLE)
        else:
            self._explain(_said(grid, order))

    def do_turn_order(self) -> None:
        grid = self._table
        if grid is None or grid.order is None:
            self._explain("The table is in its own order: . orders it by a column")
        else:
            order = Order(grid.order.column, not grid.order.descending)
            grid.sort(order)
            self._explain(_said(grid, order))

    def do_figures(self) -> None:
        """What the columns of the table in front mean; the one that it is ordered by comes first."""
        from qtui.glossary import explained
        from qtui.screens.dialogs import Reading

        grid, screen = self._table, self.stage_screen
        where = str(getattr(screen, "where", "") or (screen.stage if screen is not None else ""))
        first = grid.order.column if grid is not None and grid.order is not None else None
        found = explained(grid.given[0], where, first) if grid is not None else ()
        if not found or screen is None:
            self._explain("No figure stands here yet: on a table F1 says what its columns mean")
            return
        text = Text()
        for title, said in found:
            text.append(f"{title}\n", "bold")
            text.append(f"{said}\n\n")
        text.rstrip()
        screen.app.push_screen(Reading("what the figures mean", text, hint="↑↓ scroll   esc back"))

    def do_copy_row(self) -> None:
        grid = self._table
        row = next((row for row in grid.rows if row.key == grid.cursor), None) if grid is not None else None
        if grid is None or row is None:
            self._explain("There is no row under the cursor")
            return
        write = getattr(getattr(self, "_driver", None), "write", lambda text: None)
        path = terminal.copy(write, row_text(grid.columns, row), os.environ, cache_dir(), "row.txt")
        self._explain("The row went to this terminal's clipboard, if the terminal takes it" + (f"; it is also in {path}" if path else ""))

    def do_save_table(self) -> None:
        grid = self._table
        if grid is None or not grid.rows:
            self._explain(_NO_TABLE)
            return
        run = Path(self.state.run.directory) if self.state.run.directory else Path()
        stage = self.stage_screen.stage if self.stage_screen is not None else "table"
        path = (run if run.is_dir() else Path()) / f"{stage}-{grid.id or 'table'}.csv"
        try:
            save(path, as_csv(grid.given[0], grid.rows).encode())
        except EngineError as error:
            self._explain(str(error))
        else:
            self._explain(f"The table's {len(grid.rows)} rows are in {path}")


def _said(grid: Grid, order: Order | None) -> str:
    if order is None:
        return "The table is in its own order again"
    title = next((column.title for column in grid.given[0] if column.key == order.column), order.column)
    return (
        f"By {title or order.column}, the {'largest' if order.descending else 'smallest'} first: . goes on to the next column, , turns it"
    )
