"""Drawn lines in a widget of their own: paragraphs, charts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.geometry import Size
from textual.strip import Strip
from textual.widget import Widget

from qtui.drawing.spans import Line
from qtui.widgets.roles import component_classes, repaint, strip

Draw = Callable[[int, int], Sequence[Line]]

ROLES = ("dim", "good", "harm", "change", "accent", "title", "axis", "front", "base", "line", "bar")


class Drawn(Widget):
    """``draw(width, height)`` gives the lines; where the height is ``auto`` it is asked with height 0 how many there are.
    Painted again only when they differ."""

    COMPONENT_CLASSES = component_classes("drawn", ROLES)
    DEFAULT_CSS = """
    Drawn {
        & > .drawn--dim { color: $text-muted; }
        & > .drawn--axis { color: $text-muted; }
        & > .drawn--base { color: $text-muted; }
        & > .drawn--front { color: $border-blurred; }
        & > .drawn--good { color: $text-success; text-style: bold; }
        & > .drawn--harm { color: $text-error; text-style: bold; }
        & > .drawn--change { color: $text-warning; }
        & > .drawn--accent { color: $text-accent; text-style: bold; }
        & > .drawn--title { text-style: bold; }
        & > .drawn--line { color: $primary; }
        & > .drawn--bar { color: $primary; }
    }
    """

    def __init__(self, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._draw: Draw = lambda width, height: ()
        self._lines: tuple[Line, ...] = ()

    def show(self, draw: Draw) -> None:
        """Draw this from now on."""
        self._draw = draw
        before, self._lines = self._lines, self._drawn()
        if len(before) != len(self._lines) and self.styles.is_auto_height:
            self.refresh(layout=True)
        else:
            repaint(self, before, self._lines)

    @property
    def text(self) -> str:
        return "\n".join("".join(part for part, _ in line) for line in self._lines)

    def _drawn(self) -> tuple[Line, ...]:
        width, height = self.content_size
        # Hidden, or not laid out yet.
        return tuple(list(line) for line in self._draw(width, height)) if width > 0 else ()

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return max(len(self._draw(width, 0)), 1) if width > 0 else 1

    def on_resize(self) -> None:
        self._lines = self._drawn()
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.content_size.width
        if y >= len(self._lines):
            return Strip.blank(width, self.visual_style.rich_style)
        return strip(self, "drawn", self._lines[y]).adjust_cell_length(width, self.visual_style.rich_style)
