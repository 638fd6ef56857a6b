"""Progress on one line, painted only when it changed: no animation, no timer."""

from __future__ import annotations

from typing import ClassVar

from textual.strip import Strip
from textual.widget import Widget

from qtui.drawing.progress_line import progress_line
from qtui.drawing.spans import Line
from qtui.widgets.roles import component_classes, repaint, strip


class ProgressLine(Widget):
    """Bar, percent, rate and time left."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = component_classes("progress", ("bar", "percent", "dim"))
    DEFAULT_CSS = """
    ProgressLine {
        width: 1fr;
        height: 1;
        & > .progress--bar { color: $primary; background: $foreground 10%; }
        & > .progress--percent { text-style: bold; }
        & > .progress--dim { color: $text-muted; }
    }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._values: tuple[float, float, str, str] = (0.0, 0.0, "", "")

    def show(self, done: float, total: float, rate: str = "", left: str = "") -> None:
        """``total`` 0 is one that is not known. ``rate`` and ``left`` are text: ``2,140 img/s``, ``0:41 left``."""
        old = self._line()
        self._values = (done, total, rate, left)
        repaint(self, [old], [self._line()])

    def render_line(self, y: int) -> Strip:
        """The line in the theme's styles."""
        return strip(self, "progress", self._line() if y == 0 else [(" " * self.size.width, "")])

    def _line(self) -> Line:
        return progress_line(*self._values, self.size.width)
