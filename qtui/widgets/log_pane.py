"""What the engine said, newest last."""

from __future__ import annotations

from rich.text import Text
from textual.widget import Widget

from qtui.state import LogLine
from qtui.text import one_line
from qtui.widgets.theme_style import theme_style

_ROLES = {"warning": "change", "error": "harm", "stage": "strong"}
_MARKS = {"info": "  ", "warning": "! ", "error": "✗ ", "stage": "▸ "}


class LogPane(Widget):
    """The last lines that fit; repainted at most once a tick, and only when lines came."""

    DEFAULT_CSS = """
    LogPane {
        height: 9;
        border: round $border-blurred;
        border-title-color: $text-muted;
        padding: 0 1;
    }
    """

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines: tuple[LogLine, ...] = ()

    def show(self, lines: tuple[LogLine, ...]) -> None:
        if lines is not self._lines:
            self._lines = lines
            self.border_title = f"log ─ {len(lines)}"
            self.refresh()

    def render(self) -> Text:
        text = Text(no_wrap=True, overflow="ellipsis")
        for line in self._lines[-max(self.size.height, 1) :]:
            text.append(f"{line.at:6.1f}s ", theme_style(self.app, "dim"))
            text.append(f"{_MARKS.get(line.level, '  ')}{one_line(line.text)}\n", theme_style(self.app, _ROLES.get(line.level, "")))
        return text
