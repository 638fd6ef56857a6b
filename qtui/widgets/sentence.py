"""The sentence about the thing under the cursor, and why a key could not act."""

from __future__ import annotations

from rich.text import Text
from textual.widget import Widget

from qtui.text import plain
from qtui.widgets.theme_style import theme_style


class Sentence(Widget):
    """At most two lines. A reason stays until the next thing is said or done."""

    DEFAULT_CSS = "Sentence { height: 2; padding: 0 1; }"

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._text = ""
        self._why = ""

    def say(self, text: str) -> None:
        if text != self._text or self._why:
            self._text, self._why = plain(text), ""
            self.refresh()

    def keep(self, text: str) -> None:
        """The same without taking away a reason that is being read."""
        if text != self._text:
            self._text = plain(text)
            if not self._why:
                self.refresh()

    def forget(self) -> None:
        """Take a reason away, and show what was said before it."""
        if self._why:
            self._why = ""
            self.refresh()

    def explain(self, reason: str) -> None:
        self._why = plain(reason)
        self.refresh()

    def renew(self, reason: str) -> None:
        """Another reason in the place of one that is still being read."""
        if self._why and self._why != plain(reason):
            self.explain(reason)

    @property
    def text(self) -> str:
        return self._why or self._text

    def render(self) -> Text:
        text = Text(f"! {self._why}", theme_style(self.app, "change")) if self._why else Text(self._text)
        width, height = self.content_size
        lines = list(text.wrap(self.app.console, width)) if width else []
        if len(lines) <= height:
            return text
        last = lines[height - 1]
        last.rstrip()
        last.truncate(max(width - 2, 0))
        last.append(" …")
        return Text("\n").join(lines[:height])
