"""The strip of plans below the strategy: what is typed is a limit, left and right walk along the front."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.timer import Timer

from qtui.budget import Front, Plan
from qtui.drawing.text import safe
from qtui.painting import titles
from qtui.screens import budget_words as words
from qtui.widgets.chart import Chart

_LONGEST = 24
_SETTLED = 0.3


class BudgetStrip(Chart, can_focus=True):
    """``plans(front)`` hands over what it shows. It keeps the limit that is typed, and the plan under its cursor as ``chosen``.

    * ``Walked``: another plan is under the cursor, or none.
    * ``Typed``: another limit is typed, and typing has paused; ``point`` then puts the cursor on the plan that was found for it.
    * ``Taken``: Enter on a plan. ``Closed``: Esc, or the focus has gone to another widget.
    """

    DEFAULT_CSS = """
    BudgetStrip {
        height: 8;
        border: round $border-blurred; border-title-color: $text-muted; border-subtitle-color: $text-accent;
        &:focus { border: round $border; border-title-color: $foreground; border-title-style: bold; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "walk(-1)", show=False),
        Binding("right", "walk(1)", show=False),
        Binding("home", "walk(-99)", show=False),
        Binding("end", "walk(99)", show=False),
        Binding("backspace", "rub", show=False),
        Binding("enter", "take", show=False),
        Binding("escape", "close", show=False),
        # Copies elsewhere; here it must not reach the app, which it would end.
        Binding("ctrl+c", "stay", show=False),
    ]

    class _Said(Message):
        def __init__(self, strip: BudgetStrip) -> None:
            super().__init__()
            self.strip = strip

    class Walked(_Said):
        """Another plan is under the cursor."""

    class Typed(_Said):
        """Another limit is to be met."""

    class Taken(_Said):
        """The plan under the cursor is to be the draft."""

    class Closed(_Said):
        """The strip is to be put away."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.front: Front | None = None
        self.chosen: Plan | None = None
        self.limit = ""
        self.waiting = ""
        self._pause: Timer | None = None

    def plans(self, front: Front | None, waiting: str) -> None:
        """Show another front; ``waiting`` is said where there is none yet."""
        if front is not self.front:
            self.chosen = None
        self.front, self.waiting = front, waiting
        self._paint()

    def point(self, plan: Plan | None) -> None:
        """Put the cursor on a plan, one of the front or another."""
        self.chosen = plan
        self._paint()

    def _paint(self) -> None:
        front, chosen, waiting = self.front, self.chosen, self.waiting
        titles(self, words.title(front), f"limit {self.limit}▏" if self.limit else f"{words.ASKS}")
        self.show(lambda width, height: words.drawn(front, chosen, waiting, width, height))

    def action_walk(self, by: int) -> None:
        """Go to the plan ``by`` places further along the front, from the chosen one or from the draft as it is."""
        front = self.front
        if front is None or not front.plans:
            return
        here = (self.chosen or front.now).bytes
        smaller = [plan for plan in front.plans if plan.bytes < here]
        larger = [plan for plan in front.plans if plan.bytes > here]
        way = smaller[::-1] if by < 0 else larger
        if way:
            self.chosen = way[min(abs(by), len(way)) - 1]
            self._paint()
            self.post_message(self.Walked(self))

    def action_rub(self) -> None:
        """Take the last character of the limit away."""
        self._write(self.limit[:-1])

    def action_take(self) -> None:
        """The plan under the cursor; a limit that is still being typed first."""
        if self._pause is not None:
            self._typed()
        self.post_message(self.Taken(self))

    def action_close(self) -> None:
        """Put the strip away; a limit is taken away first."""
        if self.limit:
            self._write("")
        else:
            self.post_message(self.Closed(self))

    def action_stay(self) -> None:
        """Do nothing."""

    def on_key(self, event: events.Key) -> None:
        if event.is_printable and event.character:
            event.stop()
            event.prevent_default()
            self._write(self.limit + event.character)

    def on_paste(self, event: events.Paste) -> None:
        event.stop()
        self._write(self.limit + event.text)

    def _write(self, text: str) -> None:
        text = safe(text).lstrip()[:_LONGEST]
        if text != self.limit:
            self.limit = text
            self._paint()
            if self._pause is not None:
                self._pause.stop()
            self._pause = self.set_timer(_SETTLED, self._typed)

    def _typed(self) -> None:
        if self._pause is not None:
            self._pause.stop()
            self._pause = None
        self.post_message(self.Typed(self))

    def on_blur(self) -> None:
        self.call_after_refresh(self._left)

    def _left(self) -> None:
        """Keys that are for another widget must not act on what is only looked at here."""
        if self.display and self.screen.is_current and self.screen.focused not in (None, self):
            self.post_message(self.Closed(self))
