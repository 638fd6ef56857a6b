"""The items that the quantized model answers otherwise than fp32: a list, and a picture of the one under the cursor."""

from __future__ import annotations

from pathlib import Path

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.events import Resize
from textual.widgets import Static

from engine.events.event import ChangeRow, Changes
from engine.events.pictures import Picture, read
from engine.report.changed import counted
from qtui import text
from qtui.drawing.rows import Cell, Column, Row
from qtui.pixels import Pixels, pixels
from qtui.screens.dialogs import Panel
from qtui.state import Run
from qtui.widgets.table import Grid
from qtui.widgets.thumbnails import Thumbnails

_NARROW = 60


def columns(run: Run, found: Changes) -> tuple[Column, ...]:
    """The item, what is right, and what both forms say."""
    return (
        Column("place", run.item[0], align="right", priority=4),
        Column("label", "right is", min=5, grow=1, priority=3),
        Column("fp32", "fp32", min=5, grow=1, priority=6),
        Column("quantized", found.which.upper(), min=5, grow=1, priority=7),
    )


def rows(found: Changes) -> tuple[Row, ...]:
    """One row an item, those that lost most first."""
    return tuple(_row(index, row) for index, row in enumerate(found.rows))


def _row(index: int, row: ChangeRow) -> Row:
    role = "harm" if row.lost > 0 else "good" if row.lost < 0 else ""
    cells = (str(row.place), text.one_line(row.label), text.one_line(row.fp32), Cell(text.one_line(row.quantized), role))
    return Row(str(index), cells, glyph="✗" if row.lost > 0 else "●" if row.lost < 0 else "·")


def heading(run: Run, found: Changes) -> str:
    """How many items are answered otherwise, and how many of them are in the list."""
    all_of_them = counted(vars(found), run.item, found.which.upper())
    return f"{all_of_them}." if len(found.rows) >= found.changed else f"{all_of_them}. The {len(found.rows)} that lost most:"


def sentence(run: Run, row: ChangeRow) -> str:
    """What became of one item, in words."""
    item, label = run.item[0], text.one_line(row.label)
    where = f"{item} {row.place}" + (f" ({text.one_line(row.file, 60)})" if row.file else "")
    right = f"{where} is {label}" if label else where
    if row.fp32 == row.quantized and not row.lost:
        return f"{right}: both say {text.one_line(row.fp32)}, and what they draw differs."
    verdict = "worse" if row.lost > 0 else "better" if row.lost < 0 else "neither better nor worse"
    return f"{right}: fp32 says {text.one_line(row.fp32)}, the quantized model {text.one_line(row.quantized)}, which is {verdict}."


def shown(picture: Picture | None, which: str = "quantized") -> tuple[tuple[str, Pixels], ...]:
    """The picture once, or with what both forms drew on it side by side; ``which`` is the name of the second."""
    if picture is None:
        return ()
    if not picture.looks:
        return (("", pixels(picture)),)
    return tuple((name, pixels(picture, picture.looks.get(form))) for name, form in (("fp32", "fp32"), (which, "quantized")))


class Changed(Panel[None]):
    """Lies over the report."""

    CSS = """
    Changed { align: center middle; background: $background 60%; }
    Changed .panel { width: 95%; height: 95%; border: round $accent; border-title-style: bold; background: $surface; padding: 0 1; }
    Changed #changed-list { width: 1fr; min-width: 30; }
    Changed #changed-picture { width: 1fr; margin-left: 2; }
    Changed.-two #changed-picture { width: 1.5fr; }
    Changed.-plain #changed-picture { display: none; }
    Changed .said { height: auto; max-height: 3; color: $text-muted; }
    """
    BINDINGS = [Binding("escape,q,i", "back")]

    def __init__(self, run: Run, found: Changes) -> None:
        super().__init__()
        self._run, self._found = run, found
        self._pictures = {picture.place: picture for picture in read(Path(run.directory))} if run.directory else {}

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel") as panel:
            panel.border_title = "what changed most"
            panel.border_subtitle = "↑↓ item   esc back"
            yield Static(text.plain(heading(self._run, self._found)), markup=False)
            with Horizontal():
                yield Grid(id="changed-list", empty="Nothing is answered otherwise.")
                yield Thumbnails(id="changed-picture")
            yield Static("", classes="said", markup=False)

    def on_mount(self) -> None:
        grid = self.query_one(Grid)
        self._settle()
        grid.show(columns(self._run, self._found), rows(self._found))
        grid.focus()
        self._show()

    def on_resize(self, event: Resize) -> None:
        self._settle()

    def _settle(self) -> None:
        self.set_class(self.size.width < _NARROW or not self._pictures, "-plain")
        self.set_class(any(picture.looks for picture in self._pictures.values()), "-two")

    def _show(self) -> None:
        cursor = self.query_one(Grid).cursor
        if cursor is None:
            return
        row = self._found.rows[int(cursor)]
        self.query_one(".said", Static).update(sentence(self._run, row))
        self.query_one(Thumbnails).show(shown(self._pictures.get(row.place), self._found.which.upper()))

    def on_grid_moved(self, event: Grid.Moved) -> None:
        self._show()

    def action_back(self) -> None:
        self.done(None)
