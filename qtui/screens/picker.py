"""All that a layer can become, in a list: what each choice makes of the file, and what of it this machine has."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical

from engine.planning.sensitivity import Sensitivity
from qtui.draft import Draft
from qtui.edits import EDITS, EditName
from qtui.screens.dialogs import Panel
from qtui.screens.strategy_detail import difference
from qtui.screens.strategy_rows import kernel_of
from qtui.screens.strategy_words import weights_db
from qtui.spec_words import spelled
from qtui.text import plain
from qtui.widgets.table import Cell, Column, Grid, Row

WHAT: dict[EditName, str] = {
    "weights": "weights", "activations": "activations", "granularity": "scales", "rounding": "rounding", "observer": "observer",
}  # fmt: skip
COLUMNS = (
    Column("choice", "choice", min=8, priority=9),
    Column("size", "size", align="right", priority=8),
    Column("noise", "alone", align="right", priority=6),
    Column("becomes", "it becomes", min=8, grow=1, cut="end", priority=7),
    Column("kernel", "on", min=6, cut="end", priority=5),
    Column("note", "", min=8, grow=2, cut="end", priority=4),
)


@dataclass(frozen=True)
class Option:
    """One choice for some layers: what it is called, its aim, the draft that it gives, and what is to be said of it. ``current`` is
    whether they are so already."""

    name: str
    aim: Any
    draft: Draft
    note: str
    current: bool


def options(draft: Draft, name: EditName, paths: Collection[str], first: str | None) -> tuple[Option, ...]:
    """The choices of an edit for ``paths``: those of ``first``, or of the first that has any."""
    rows = sorted((row for row in draft.plan.layers if row.path in paths and row.editable), key=lambda row: row.path != first)
    found = next((aims for row in rows if (aims := EDITS[name].aims(row, draft.specs[row.path]))), {})
    return tuple(_option(draft, name, paths, called, aim, len(rows)) for called, aim in found.items())


def _option(draft: Draft, name: EditName, paths: Collection[str], called: str, aim: Any, count: int) -> Option:
    outcome = draft.choose(name, paths, aim)
    changed = len(outcome.changed)
    if not changed:
        already = "is so already" in outcome.note
        return Option(called, aim, draft, "as it is" if already and count == 1 else outcome.note, already)
    # What limits the layer as it is is known already.
    limits = [limit for path in outcome.changed if (limit := outcome.draft.actual(path)[1]) and limit != draft.actual(path)[1]]
    some = f"{changed} of {count}" if changed < count else ""
    return Option(called, aim, outcome.draft, ": ".join(filter(None, (some, outcome.note if some else next(iter(limits), "")))), False)


def rows(draft: Draft, found: Sequence[Option], lead: str, dims: bool, estimates: Sensitivity | None = None) -> tuple[Row, ...]:
    """One row a choice. With ``dims`` one that makes the file no smaller than the choice before it is dim, and says as which.
    ``lead`` is the layer that is shown, and ``estimates`` tell how much noise its weights then add."""
    before: Option | None = None
    listed = []
    for option in found:
        row = option.draft.layer(lead)
        same = dims and before is not None and before.draft.predicted_bytes == option.draft.predicted_bytes
        size = "now" if option.current else difference(option.draft.predicted_bytes - draft.predicted_bytes)
        size = f"same bytes as {before.name}" if same and before is not None and not option.current else size
        becomes, kernel = spelled(option.draft.actual(lead)[0]), kernel_of(option.draft, row) if row is not None else ""
        noise = weights_db(estimates, lead, option.draft.specs[lead]) if dims else ""
        cells = (option.name, Cell(size, "dim" if same else ""), noise, becomes, kernel, Cell(option.note, "dim"))
        listed.append(
            Row(option.name, cells, role="title" if option.current else "dim" if same else "", glyph="▸" if option.current else " ")
        )
        before = before if same else option
    return tuple(listed)


class Picker(Panel[str]):
    """Gives the name of the choice."""

    CSS = """
    Picker { align: center middle; background: $background 60%; }
    Picker .panel {
        width: 95%; max-width: 110; height: auto; max-height: 90%;
        border: round $accent; border-title-style: bold; background: $surface; padding: 0 1;
    }
    """
    BINDINGS = [Binding("escape,q", "back")]

    def __init__(
        self, draft: Draft, name: EditName, paths: Collection[str], first: str | None, estimates: Sensitivity | None = None
    ) -> None:
        super().__init__()
        self._estimates = estimates
        self._draft, self._what, self._paths, self._first = draft, WHAT[name], frozenset(paths), first
        self.options = options(draft, name, paths, first)

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel") as panel:
            count = sum(path in self._draft.specs for path in self._paths)
            about = next(iter(self._paths)) if count == 1 else f"{count} layers"
            panel.border_title = plain(f"{self._what} ─ {about}")
            panel.border_subtitle = "⏎ take it   esc back"
            yield Grid()

    def on_mount(self) -> None:
        grid, able = self.query_one(Grid), [path for path in self._draft.specs if path in self._paths]
        lead = self._first if self._first in able else able[0]
        grid.styles.height = min(len(self.options) + 1, 18)
        sized = self._what == WHAT["weights"]
        columns = COLUMNS if sized and self._estimates is not None else tuple(one for one in COLUMNS if one.key != "noise")
        listed = rows(self._draft, self.options, lead, sized, self._estimates)
        if columns is not COLUMNS:
            listed = tuple(replace(row, cells=(*row.cells[:2], *row.cells[3:])) for row in listed)
        grid.show(columns, listed)
        grid.move_to(next((option.name for option in self.options if option.current), self.options[0].name))
        grid.focus()

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        self.done(event.key)

    def action_back(self) -> None:
        self.done(None)
