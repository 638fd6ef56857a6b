"""A line that narrows a list down while one types."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

if TYPE_CHECKING:
    from textual.widgets import Input

from qtui.drawing.text import safe
from qtui.filtering import matches

__all__ = ["FilterBar", "matches"]


class FilterBar(Horizontal):
    """``FilterBar(id=None, placeholder="…")``: one line, hidden until ``open()``. Put it below the list in the list's pane.

    * ``open()`` shows it and takes the focus: call it from ``do_filter``.
    * ``text`` is the filter in effect, also while the line is hidden; ``matches(text, fields)`` says which rows stay.
    * ``FilterBar.Changed`` (``.bar``, ``.text``) comes with each change: show the rows that stay, then ``count(shown, total)``.
    * Enter, up or down keep the filter, hide the line and give the focus back; Esc does so and clears it.
    * ``clear()`` takes the filter away, from ``do_unfilter`` on Esc while the list has the focus; False where none was.
    * ``filtered(shown, total)`` is "3 of 14" or "14" for the pane's title.
    """

    DEFAULT_CSS = """
    FilterBar {
        height: 1;
        display: none;
        &.-open { display: block; }
        & > .filter--sign { width: 2; color: $accent; text-style: bold; }
        & > .filter--count { width: auto; padding-left: 1; color: $text-muted; }
        & > Input, & > Input:focus { width: 1fr; background: $background; background-tint: $background 0%; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close(False)", "Show all", show=False),
        Binding("up,down", "close(True)", "Back to the list", show=False),
        # Copies in the line; where nothing is selected it must not reach the app, which it would end.
        Binding("ctrl+c", "stay", show=False),
    ]

    class Changed(Message):
        """Another text is in effect."""

        def __init__(self, bar: FilterBar, text: str) -> None:
            super().__init__()
            self.bar = bar
            self.text = text

        @property
        def control(self) -> FilterBar:
            """The bar it comes from."""
            return self.bar

    def __init__(self, id: str | None = None, placeholder: str = "type a part of a name   ⏎ keep   esc all") -> None:
        super().__init__(id=id)
        self._placeholder = placeholder
        self._text = ""
        self._before: Widget | None = None
        self._line: Input | None = None

    @property
    def text(self) -> str:
        """The filter in effect; empty where everything is shown."""
        return self._text

    def open(self) -> None:
        """Show the line with the filter in effect and type into it."""
        line = self._line or self._made()
        if self.screen.focused is not line:
            self._before = self.screen.focused
        self.add_class("-open")
        line.disabled = False
        line.focus()

    def _made(self) -> Input:
        """The line to type into. It is heavy to import and to lay out, and most screens are left without a filter."""
        from textual.widgets import Input

        line = Input(placeholder=self._placeholder, compact=True, max_length=200, select_on_focus=False)
        line.cursor_blink = False
        self.mount(Static("/", classes="filter--sign"), line, Static("", classes="filter--count"))
        self._line = line
        return line

    def clear(self) -> bool:
        """Take the filter away; whether there was one."""
        had = bool(self._text)
        if self._line is not None:
            self._line.value = ""
        self._set("")
        return had

    def count(self, shown: int, total: int) -> None:
        """Say at the right how many rows stay."""
        for label in self.query(".filter--count").results(Static):
            label.update(f"{shown:,} of {total:,}" if self._text else "")

    def filtered(self, shown: int, total: int) -> str:
        """How many rows are shown, for the title of the pane."""
        return f"{shown:,} of {total:,}" if self._text else f"{total:,}"

    def action_close(self, keep: bool) -> None:
        """Hide the line and give the focus back."""
        if not keep:
            self.clear()
        if self._before is not None and self._before.is_attached:
            self._before.focus()
        else:
            self.screen.focus_next()
        if self._line is not None:
            self._line.disabled = True
        self.remove_class("-open")

    def action_stay(self) -> None:
        """Do nothing."""

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self._set(safe(event.value).strip())

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.action_close(True)

    def _set(self, text: str) -> None:
        if text != self._text:
            self._text = text
            self.post_message(self.Changed(self, text))
