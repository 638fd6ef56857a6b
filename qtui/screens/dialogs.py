"""Small panels over a screen: confirm, choose, type a line, read. Esc always backs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from rich.console import RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from qtui.painting import Paced
from qtui.paths_typed import completed, unquoted
from qtui.text import plain
from qtui.widgets.table import Column, Grid, Row
from qtui.widgets.theme_style import theme_style

Result = TypeVar("Result")
_NAMED = 6


class _Panel:
    """The look that all panels share."""

    CSS = """
    Confirm, Choose, Several, Prompt, Reading { align: center middle; background: $background 60%; }
    .panel {
        width: auto; max-width: 95%; min-width: 36; height: auto; max-height: 90%;
        border: round $accent; border-title-style: bold; background: $surface; padding: 0 1;
    }
    .panel.-harm { border: round $error; }
    .panel Static { width: auto; max-width: 100%; }
    .panel .hint { color: $text-muted; margin-top: 1; }
    .panel .wrong { color: $error; }
    .panel.-wide, Choose .panel, Several .panel, Prompt .panel { width: 72; }
    .panel Grid { max-height: 16; width: 100%; }
    .panel Input { width: 100%; }
    .panel VerticalScroll { width: auto; max-width: 100%; height: auto; max-height: 100%; }
    .panel.-wide VerticalScroll, .panel.-wide VerticalScroll Static { width: 100%; }
    """


class Panel(Paced, ModalScreen[Result]):
    """A panel that gives one result. Of keys that were typed ahead only the first ends it."""

    def done(self, value: Result | None) -> None:
        """End with ``value``, once; not before the panel stands, for one that is taken away while it is made breaks."""
        if not self.is_mounted:
            self.call_later(self.done, value)
        elif self.is_current and not self._ended:
            self._ended = True
            self.dismiss(value)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """What works on the panel's contents waits for them: keys typed ahead may arrive before they are composed."""
        return self.is_mounted or action not in ("scroll", "mark")

    _ended = False


class Confirm(Panel[bool]):
    """A question whose default is No."""

    CSS = _Panel.CSS
    BINDINGS = [Binding("y", "answer(True)"), Binding("n,escape,enter,q", "answer(False)")]

    def __init__(self, title: str, text: str, yes: str = "yes", no: str = "no") -> None:
        super().__init__()
        self._title, self._text, self._yes, self._no = title, plain(text), yes, no

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel") as panel:
            panel.border_title = self._title
            yield Static(Text(self._text))
            yield Static(Text.assemble(("y", "bold"), f" {self._yes}    ", ("n", "bold"), f" {self._no}"), classes="hint")

    def action_answer(self, value: bool) -> None:
        self.done(value)


class Choose(Panel[str | None]):
    """One of a list of (value, text); the current one is under the cursor first."""

    CSS = _Panel.CSS
    BINDINGS = [Binding("escape,q", "back")]

    def __init__(self, title: str, options: Sequence[tuple[str, str]], current: str = "", hint: str = "⏎ choose   esc back") -> None:
        super().__init__()
        self._title, self._options, self._current, self._hint = title, tuple(options), current, hint

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel") as panel:
            panel.border_title = self._title
            panel.border_subtitle = self._hint
            yield Grid()

    def on_mount(self) -> None:
        grid = self.query_one(Grid)
        grid.styles.height = len(self._options) + 1
        grid.show((Column("text", "", grow=1, cut="end"),), [Row(value, (text,)) for value, text in self._options])
        grid.move_to(self._current)
        grid.focus()

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        self.done(event.key)

    def action_back(self) -> None:
        self.done(None)


class Several(Panel[tuple[str, ...] | None]):
    """Any of a list of rows, in their order; ``marked`` ones are under a mark first. Rows that are not selectable only tell."""

    CSS = _Panel.CSS
    BINDINGS = [Binding("escape,q", "back"), Binding("space", "mark")]

    def __init__(self, title: str, columns: Sequence[Column], rows: Sequence[Row], marked: Sequence[str], hint: str) -> None:
        super().__init__()
        self._title, self._columns, self._rows, self._hint = title, tuple(columns), tuple(rows), hint
        self._marked = set(marked)

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel") as panel:
            panel.border_title = self._title
            panel.border_subtitle = self._hint
            yield Grid(marks=True)

    def on_mount(self) -> None:
        grid = self.query_one(Grid)
        grid.styles.height = len(self._rows) + 1
        self._show()
        grid.focus()

    def _show(self) -> None:
        self.query_one(Grid).show(self._columns, [replace(row, marked=row.key in self._marked) for row in self._rows])

    def action_mark(self) -> None:
        if (key := self.query_one(Grid).cursor) is not None:
            self._marked ^= {key}
            self._show()

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        """Without a mark the row under the cursor is meant."""
        self.done(tuple(row.key for row in self._rows if row.key in (self._marked or {event.key})))

    def action_back(self) -> None:
        self.done(None)


class Prompt(Panel[str | None]):
    """A line of text. ``check`` gives what is wrong with it, or None. Tab completes ``paths``; quotes around what was pasted are taken
    off."""

    CSS = _Panel.CSS
    BINDINGS = [Binding("escape", "back"), Binding("tab", "complete", priority=True)]

    def __init__(
        self, title: str, text: str, value: str = "", placeholder: str = "",
        check: Callable[[str], str | None] = lambda value: None, paths: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self._title, self._text, self._value, self._placeholder, self._check = title, text, value, placeholder, check
        self._paths = paths

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel") as panel:
            panel.border_title = self._title
            yield Static(Text(self._text))
            line = Input(self._value, placeholder=self._placeholder, max_length=4096)
            line.cursor_blink = False
            yield line
            yield Static("", classes="wrong")
            yield Static(f"⏎ take it   {'tab completes   ' if self._paths else ''}esc back", classes="hint")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        value = unquoted(event.value)
        wrong = self._check(value)
        if wrong is None:
            self.done(value)
        else:
            self.query_one(".wrong", Static).update(Text(wrong))

    def action_complete(self) -> None:
        """As far as the names of files that begin like this are the same; then which there are."""
        if not self._paths or not self.is_mounted:
            return
        line = self.query_one(Input)
        line.value, names = completed(line.value)
        line.cursor_position = len(line.value)
        said = f"{'   '.join(names[:_NAMED])}{' …' if len(names) > _NAMED else ''}"
        self.query_one(".wrong", Static).update(Text(plain(said), theme_style(self.app, "dim")))

    def action_back(self) -> None:
        self.done(None)


class Pick(Panel[str | None]):
    """One of a list of (value, text), or a line that is typed: what is typed wins, and the list moves to what it begins. ``check``
    gives what is wrong with it, or None."""

    CSS = _Panel.CSS + "\nPick { align: center middle; background: $background 60%; } Pick .panel { width: 76; }"
    BINDINGS = [Binding("escape", "back"), Binding("down", "move(1)", priority=True), Binding("up", "move(-1)", priority=True)]

    def __init__(self, title: str, text: str, options: Sequence[tuple[str, str]], current: str, check: Callable[[str], str | None]) -> None:
        super().__init__()
        self._title, self._text, self._options, self._current, self._check = title, text, tuple(options), current, check

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel") as panel:
            panel.border_title = self._title
            panel.border_subtitle = "⏎ take it   esc back"
            yield Static(Text(self._text))
            grid = Grid()
            grid.can_focus = False
            yield grid
            line = Input("", placeholder="a name, or path/task.py:factory", max_length=4096)
            line.cursor_blink = False
            yield line
            yield Static("", classes="wrong")

    def on_mount(self) -> None:
        grid = self.query_one(Grid)
        grid.styles.height = min(len(self._options) + 1, 14)
        grid.show((Column("text", "", grow=1, cut="end"),), [Row(value, (text,)) for value, text in self._options])
        grid.move_to(self._current)
        self.query_one(Input).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        typed = event.value.strip()
        first = next((value for value, _ in self._options if typed and value.startswith(typed)), None)
        if first is not None:
            self.query_one(Grid).move_to(first)

    def action_move(self, by: int) -> None:
        grid, values = self.query_one(Grid), [value for value, _ in self._options]
        place = values.index(grid.cursor) + by if grid.cursor in values else 0
        self.query_one(Input).value = ""
        grid.move_to(values[min(max(place, 0), len(values) - 1)])

    def on_input_submitted(self, event: Input.Submitted) -> None:
        typed, values = unquoted(event.value), [value for value, _ in self._options]
        begun = [value for value in values if value.startswith(typed)]
        value = typed if not begun or typed in values else begun[0] if len(begun) == 1 else ""
        if not typed:
            value = self.query_one(Grid).cursor or ""
        wrong = self._check(value) if value else f"several begin with {typed}: type more, or choose with ↑↓"
        if wrong is None:
            self.done(value)
        else:
            self.query_one(".wrong", Static).update(Text(wrong))

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        self.done(event.key)

    def action_back(self) -> None:
        self.done(None)


class Reading(Panel[None]):
    """Text to read and scroll."""

    CSS = _Panel.CSS
    BINDINGS = [
        Binding("escape,enter,q,question_mark", "back"), Binding("j,down", "scroll(1)", show=False),
        Binding("k,up", "scroll(-1)", show=False),
        Binding("pagedown,space", "scroll(10)", show=False), Binding("pageup", "scroll(-10)", show=False),
    ]  # fmt: skip

    def __init__(self, title: str, text: RenderableType, harm: bool = False, hint: str = "esc back") -> None:
        super().__init__()
        self._title, self._harm, self._hint = title, harm, hint
        self._text: RenderableType = Text(text) if isinstance(text, str) else text
        if isinstance(self._text, Text):
            # A message may hold what a program painted with; it keeps its length, so styles stay where they are.
            self._text.plain = plain(self._text.plain)

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel -harm" if self._harm else "panel") as panel:
            panel.border_title = self._title
            panel.border_subtitle = self._hint
            # Of a table no width can be told before it is laid out.
            panel.set_class(not isinstance(self._text, Text), "-wide")
            with VerticalScroll(can_focus=False):
                yield Static(self._text)

    def action_back(self) -> None:
        self.done(None)

    def action_scroll(self, lines: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)
