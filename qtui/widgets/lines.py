"""One-line widgets that paint styled pieces and repaint only when those change: stage bar, subject, footer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.style import Style
from rich.text import Text
from textual.widget import Widget

Piece = tuple[str, str]


class PieceLine(Widget):
    """``draw(width)`` gives the pieces (text, role); a role is a component class ``line--ROLE``."""

    COMPONENT_CLASSES = {"line--dim", "line--accent", "line--good", "line--harm", "line--change", "line--here", "line--strong", "line--key"}
    DEFAULT_CSS = """
    PieceLine {
        height: 1;
        .line--dim { color: $text-muted; }
        .line--accent { color: $accent; text-style: bold; }
        .line--good { color: $success; }
        .line--harm { color: $error; text-style: bold; }
        .line--change { color: $warning; }
        .line--here { text-style: bold underline; }
        .line--strong { text-style: bold; }
        .line--key { color: $accent; text-style: bold; }
    }
    """

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
            style: Style | str = self.get_component_rich_style(f"line--{role}", partial=True) if role else ""
            line.append(text, style)
        return line
