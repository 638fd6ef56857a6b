"""One-line widgets that paint styled pieces and repaint only when those change: stage bar, subject, footer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.text import Text
from textual.events import Click
from textual.message import Message
from textual.widget import Widget

from qtui.drawing.text import cells
from qtui.widgets.theme_style import theme_style

Piece = tuple[str, str]


class PieceLine(Widget):
    """``draw(width)`` gives the pieces (text, role); the roles are those of ``theme_style``."""

    DEFAULT_CSS = "PieceLine { height: 1; }"

    class Pressed(Message):
        """A click on the piece of that ``index`` among ``pieces``."""

        def __init__(self, line: PieceLine, pieces: tuple[Piece, ...], index: int) -> None:
            super().__init__()
            self.line, self.pieces, self.index = line, pieces, index

        @property
        def control(self) -> PieceLine:
            """The line that was clicked."""
            return self.line

    def __init__(self, draw: Callable[[int], Sequence[Piece]] | None = None, id: str | None = None) -> None:
        super().__init__(id=id)
        self._draw = draw or (lambda width: ())
        self._shown: tuple[Piece, ...] | None = None

    def show(self, draw: Callable[[int], Sequence[Piece]]) -> None:
        """Draw this from now on; nothing is painted if it looks the same."""
        self._draw = draw
        if tuple(draw(self.size.width)) != self._shown:
            self.refresh()

    def on_click(self, event: Click) -> None:
        """Tell which piece is under the pointer."""
        end = 0
        for index, (text, _) in enumerate(self._shown or ()):
            end += cells(text)
            if event.x < end:
                self.post_message(self.Pressed(self, self._shown or (), index))
                return

    def render(self) -> Text:
        self._shown = tuple(self._draw(self.size.width))
        line = Text(no_wrap=True, end="", overflow="crop")
        for text, role in self._shown:
            line.append(text, theme_style(self.app, role))
        return line
