"""One-line widgets that paint styled pieces and repaint only when those change: stage bar, subject, footer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.text import Text
from textual.widget import Widget

from qtui.widgets.theme_style import theme_style

Piece = tuple[str, str]


class PieceLine(Widget):
    """``draw(width)`` gives the pieces (text, role); the roles are those of ``theme_style``."""

    DEFAULT_CSS = "PieceLine { height: 1; }"

    def __init__(self, draw: Callable[[int], Sequence[Piece]] | None = None, id: str | None = None) -> None:
        super().__init__(id=id)
        self._draw = draw or (lambda width: ())
        self._shown: tuple[Piece, ...] | None = None

    def show(self, draw: Callable[[int], Sequence[Piece]]) -> None:
        """Draw this from now on; nothing is painted if it looks the same."""
        self._draw = draw
        if tuple(draw(self.size.width)) != self._shown:
            self.refresh()

    def render(self) -> Text:
        self._shown = tuple(self._draw(self.size.width))
        line = Text(no_wrap=True, end="", overflow="crop")
        for text, role in self._shown:
            line.append(text, theme_style(self.app, role))
        return line
