"""A chart that paints only the cells that changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.strip import Strip
from textual.widget import Widget

from qtui.drawing.spans import Line
from qtui.widgets.roles import component_classes, repaint, strip

Draw = Callable[[int, int], list[Line]]
"""Draws a chart in exactly this width and height."""


class Chart(Widget):
    """Shows what a function draws. ``show`` hands over another one; what it draws alike is not painted again."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = component_classes(
        "chart", ("line", "other", "base", "axis", "dim", "accent", "front", "change", "harm", "good", "bar", "clip")
    )
    DEFAULT_CSS = """
    Chart {
        width: 1fr;
        height: 1fr;
        & > .chart--line { color: $text-primary; }
        & > .chart--other { color: $text-secondary; }
        & > .chart--base { color: $text-muted; }
        & > .chart--axis { color: $text-muted; }
        & > .chart--dim { color: $text-muted; }
        & > .chart--accent { color: $text-accent; text-style: bold; }
        & > .chart--front { color: $accent; }
        & > .chart--change { color: $text-warning; }
        & > .chart--harm { color: $text-error; text-style: bold; }
        & > .chart--good { color: $text-success; }
        & > .chart--bar { color: $primary; }
        & > .chart--clip { color: $text-warning; text-style: bold; }
    }
    """

    def __init__(self, draw: Draw | None = None, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._draw = draw
        self._lines: list[Line] = []
        self._drawn_for: tuple[int, int] | None = None

    def show(self, draw: Draw) -> None:
        """Show what ``draw`` draws from now on, at every size."""
        self._draw = draw
        if self._drawn_for is None or self._drawn_for != self.size:
            # Hidden it has another size, and may come back in the one that the old lines were drawn for.
            self._drawn_for = None
            self.refresh()
            return
        before, self._lines = self._lines, draw(*self.size)
        repaint(self, before, self._lines)

    def render_line(self, y: int) -> Strip:
        """One line of the chart in the theme's styles."""
        if self._draw is not None and self._drawn_for != self.size:
            self._lines, self._drawn_for = self._draw(*self.size), (self.size.width, self.size.height)
        return strip(self, "chart", self._lines[y] if y < len(self._lines) else [(" " * self.size.width, "")])
