"""What else a run can be asked: a list of options, each changed by Enter."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.widgets import Static

from qtui import options
from qtui.options import Option, Options
from qtui.screens.dialogs import Choose, Panel, Prompt
from qtui.text import plain
from qtui.widgets.table import Cell, Column, Grid, Row

_COLUMNS = (
    Column("name", "option", min=12, priority=9), Column("value", "value", min=12, grow=1, cut="middle", priority=8),
    Column("help", "", min=10, grow=2, cut="end", priority=5),
)  # fmt: skip


class OptionsPanel(Panel[Options]):
    """Gives what was given, when it is closed."""

    CSS = """
    OptionsPanel { align: center middle; background: $background 60%; }
    OptionsPanel .panel {
        width: 95%; max-width: 116; height: auto; max-height: 95%;
        border: round $accent; border-title-style: bold; background: $surface; padding: 0 1;
    }
    OptionsPanel #about { height: 2; color: $text-muted; }
    """
    BINDINGS = [Binding("escape,q,s", "back"), Binding("z,backspace,delete", "reset")]

    def __init__(self, given: Options) -> None:
        super().__init__()
        self.given = given

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel") as panel:
            panel.border_title = "what else a run is asked"
            panel.border_subtitle = "⏎ change   z as it was   esc done"
            yield Grid()
            yield Static("", id="about")

    def on_mount(self) -> None:
        grid = self.query_one(Grid)
        grid.styles.height = min(len(options.TABLE) + 1, max(self.app.size.height - 6, 4))
        self._show()
        grid.focus()

    def _show(self) -> None:
        given = dict(self.given)
        self.query_one(Grid).show(_COLUMNS, [_row(option, given.get(option.key)) for option in options.TABLE])

    def on_grid_moved(self, event: Grid.Moved) -> None:
        self.query_one("#about", Static).update(plain(options.BY_KEY[event.key].help))

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        option, now = options.BY_KEY[event.key], dict(self.given).get(event.key, "")

        def taken(value: str | None) -> None:
            if value is not None:
                self.given = options.changed(self.given, option.key, value)
                self._show()

        if option.choices:
            self.app.push_screen(Choose(option.name, [(one, one) for one in option.choices], now or option.default), taken)
        else:
            text = f"{option.help}\nEmpty takes it away."
            check = lambda value: options.wrong(option.key, value)  # noqa: E731
            self.app.push_screen(Prompt(option.name, text, now, option.default, check, paths=option.kind == "path"), taken)

    def action_reset(self) -> None:
        if (key := self.query_one(Grid).cursor) is not None:
            self.given = options.changed(self.given, key, "")
            self._show()

    def action_back(self) -> None:
        self.done(self.given)


def _row(option: Option, given: str | None) -> Row:
    value = Cell(option.default, "dim") if given is None else Cell(given, "change")
    return Row(
        option.key,
        (option.name, value, Cell(option.help, "dim")),
        glyph=" " if given is None else "*",
        role="" if given is None else "change",
    )
