"""The palette: every action of a screen by name, with its key and, where it cannot act, why."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.widgets import Input

from qtui import actions
from qtui.screens.dialogs import Panel
from qtui.state import Stage, State
from qtui.widgets.filter_bar import matches
from qtui.widgets.table import Cell, Column, Grid, Row

COLUMNS = (
    Column("name", "action", min=12, priority=3),
    Column("key", "key", priority=2),
    Column("help", "", grow=1, cut="end", priority=1),
)


def rows(stage: Stage, state: State, wanted: str) -> tuple[Row, ...]:
    """The actions that hold the words of ``wanted`` in their name, key or help."""
    found = [a for a in actions.of(stage) if a.id != "palette" and matches(wanted, (a.label, a.help, *a.keys))]
    return tuple(_row(action, action.why_not(state)) for action in found)


def _row(action: actions.Action, reason: str | None) -> Row:
    keys = " ".join(actions.key_text(key) for key in action.keys)
    text = Cell(f"not now: {reason}" if reason else action.help, "dim")
    return Row(action.id, (action.label.removesuffix(" ▸"), Cell(keys, "accent"), text), "dim" if reason else "")


class Palette(Panel[str | None]):
    """Gives the id of the action that was chosen."""

    CSS = """
    Palette { align: center top; background: $background 60%; }
    Palette .panel { width: 90%; max-width: 100; height: 80%; margin-top: 1; border: round $accent; background: $surface; padding: 0 1; }
    Palette Input { width: 100%; border: none; height: 1; padding: 0; background: $surface; }
    """
    BINDINGS = [
        Binding("escape", "back"), Binding("down", "move(1)"), Binding("up", "move(-1)"), Binding("pagedown", "page(1)"),
        Binding("pageup", "page(-1)"), Binding("ctrl+p", "back"),
    ]  # fmt: skip

    def __init__(self, stage: Stage, state: State) -> None:
        super().__init__()
        self._stage, self._state = stage, state

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel") as panel:
            panel.border_title = "all actions"
            panel.border_subtitle = "⏎ do it   esc back"
            line = Input(placeholder="type a part of its name, key or purpose", compact=True, max_length=200)
            line.cursor_blink = False
            yield line
            grid = Grid(empty="No action is called that.")
            grid.can_focus = False
            yield grid

    def on_mount(self) -> None:
        self._show("")

    def _show(self, wanted: str) -> None:
        self.query_one(Grid).show(COLUMNS, rows(self._stage, self._state, wanted))

    def on_input_changed(self, event: Input.Changed) -> None:
        self._show(event.value)

    def on_input_submitted(self) -> None:
        self.query_one(Grid).action_choose()

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        self.done(event.key)

    def action_move(self, by: int) -> None:
        self.query_one(Grid).action_move(by)

    def action_page(self, by: int) -> None:
        self.query_one(Grid).action_page(by)

    def action_back(self) -> None:
        self.done(None)
