"""The palette: every action of every screen by name, with its key and, where it cannot act, why; layers and runs by theirs."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.widgets import Input

from qtui import actions
from qtui.screens.dialogs import Panel
from qtui.stage_table import find, registry
from qtui.state import Stage, State
from qtui.widgets.filter_bar import matches
from qtui.widgets.table import Cell, Column, Grid, Row

COLUMNS = (
    Column("name", "action", min=12, priority=3),
    Column("key", "key", priority=2),
    Column("help", "", grow=1, cut="end", priority=1),
)


_MOST = 30


@dataclass(frozen=True)
class Choice:
    """What was chosen: an action of the screen in front, or a stage to go to and, there, the key of a line to put the cursor on."""

    action: str = ""
    stage: Stage = ""
    line: str = ""


def rows(stage: Stage, state: State, wanted: str) -> tuple[Row, ...]:
    """The actions that hold the words of ``wanted`` in their name, key or help: of ``stage``, of the whole app, of the other
    screens; then the layers and runs whose names hold them."""
    here = [a for a in actions.of(stage) if a.id != "palette" and matches(wanted, (a.label, a.help, *a.keys))]
    found = [_row(action, action.why_not(state)) for action in here]
    for other in registry():
        if other.id != stage:
            reason = other.unavailable(state)
            for action in actions.own(other.id):
                if matches(wanted, (action.label, action.help, other.title)):
                    found.append(_elsewhere(action, f"{other.id}:", other.title, reason))
    for where, title in actions.OVER.items():
        below = find(actions.OF_STAGE[where])
        for action in actions.own(where):
            if action.id != "back" and matches(wanted, (action.label, action.help, title)):
                found.append(_elsewhere(action, f"{below.id}:{where}.", f"{below.title} ▸ {title}", below.unavailable(state)))
    if wanted.strip():
        found += [*_layers(state, wanted), *_runs(state, wanted)]
    return tuple(found)


def choice(key: str) -> Choice:
    """What the row of a key stands for."""
    stage, colon, line = key.partition(":")
    if not colon:
        return Choice(key)
    return Choice(stage=stage, line=line[1:] if line.startswith("=") else "")


def _elsewhere(action: actions.Action, key: str, title: str, reason: str | None) -> Row:
    says = f"not now: {reason}" if reason else f"{title}, {actions.key_text(action.keys[0])}: takes you there"
    cells = (action.label.removesuffix(" ▸"), Cell(actions.key_text(action.keys[0]), "dim"), Cell(says, "dim"))
    return Row(f"{key}{action.id}", cells, "dim" if reason else "")


def _layers(state: State, wanted: str) -> list[Row]:
    draft = state.run.draft
    if draft is None:
        return []
    found = [row for row in draft.plan.layers if matches(wanted, (row.path,))][:_MOST]
    return [Row(f"strategy:={row.path}", (row.path, "", Cell(f"layer, {row.kind}: shows it in the strategy", "dim"))) for row in found]


def _runs(state: State, wanted: str) -> list[Row]:
    found = [run for run in state.runs if matches(wanted, (run.directory.name, run.model, run.data))][:_MOST]
    return [
        Row(f"model:={run.directory}", (run.directory.name, "", Cell(f"run, {run.model} on {run.data}: shows it in the list", "dim")))
        for run in found
    ]


def _row(action: actions.Action, reason: str | None) -> Row:
    keys = " ".join(actions.key_text(key) for key in action.keys)
    text = Cell(f"not now: {reason}" if reason else action.help, "dim")
    return Row(action.id, (action.label.removesuffix(" ▸"), Cell(keys, "accent"), text), "dim" if reason else "")


class Palette(Panel[Choice | None]):
    """Gives what was chosen. What is typed before its line stands goes into that line."""

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
        self.query_one(Input).focus()

    def _show(self, wanted: str) -> None:
        self.query_one(Grid).show(COLUMNS, rows(self._stage, self._state, wanted))

    def on_input_changed(self, event: Input.Changed) -> None:
        self._show(event.value)

    def on_input_submitted(self) -> None:
        self.query_one(Grid).action_choose()

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        self.done(choice(event.key))

    def on_key(self, event: events.Key) -> None:
        line = self.query_one(Input)
        if not line.has_focus and event.is_printable and event.character:
            event.stop()
            line.value += event.character
            line.cursor_position = len(line.value)

    def action_move(self, by: int) -> None:
        self.query_one(Grid).action_move(by)

    def action_page(self, by: int) -> None:
        self.query_one(Grid).action_page(by)

    def action_back(self) -> None:
        self.done(None)
