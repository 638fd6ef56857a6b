"""Where text goes: one stream, with colour on a terminal and none in a pipe."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from qtui.layout import GAP, INDENT, Layout, arrange
from qtui.text import plain

if TYPE_CHECKING:
    from rich.console import JustifyMethod, RenderableType

_LABEL = 8


class Screen:
    """Prints lines and tables. When the stream is lost (its reader has gone) it falls silent and calls ``on_lost`` once."""

    def __init__(self, stream: TextIO, on_lost: Callable[[], None] | None = None) -> None:
        from rich.console import Console

        self.stream = stream
        self.lost: OSError | None = None
        self._on_lost = on_lost
        asked = Console(file=stream)
        self.live = asked.is_terminal
        # Rendered apart and written here: what a lost stream means is decided in one place.
        self._rendered = io.StringIO()
        colours: Any = asked.color_system
        self._console = Console(
            file=self._rendered, force_terminal=self.live, color_system=colours, markup=False, highlight=False, emoji=False
        )

    def write(self, text: str) -> None:
        """Text as it is, at once; no newline is added."""
        if self.lost:
            return
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError as error:
            self.lost = error
            if self._on_lost is None:
                raise
            self._on_lost()

    def line(self, text: object = "", style: str = "", indent: int = 0) -> None:
        """One paragraph; wrapped with its indentation on a terminal, left whole in a pipe."""
        from rich.padding import Padding
        from rich.text import Text

        words = Text(plain(text), style=style)
        if self.live:
            self._print(Padding(words, (0, 0, 0, indent)) if indent else words)
        else:
            self.write(f"{' ' * indent}{words.plain}".rstrip() + "\n")

    def entry(self, name: str, value: str, width: int) -> None:
        """A name, ``width`` cells wide, and its value; on a terminal what does not fit goes on below the value's beginning."""
        from rich.padding import Padding

        label = f"{plain(name):<{width}}"
        if self.live:
            self._print(Padding(_entry(label, plain(value)), (0, 0, 0, INDENT)))
        else:
            self.write(f"{' ' * INDENT}{label}{' ' * GAP}{plain(value)}".rstrip() + "\n")

    def pieces(self, label: str, parts: Iterable[str]) -> None:
        """A label and its figures in one line; on a narrow terminal the rest goes below the first figure."""
        width = self._console.width if self.live else 0
        start = " " * INDENT + f"{plain(label):<{_LABEL}}"
        text = start
        for part in map(plain, parts):
            if width and text.strip() != start.strip() and len(text) + GAP + len(part) > width:
                self.line(text.rstrip())
                text = " " * len(start)
            text += " " * GAP + part
        self.line(text.rstrip())

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
        """Rows under their headings. Names are never cut; prose that does not fit stands below its row."""
        heads = [plain(column) for column in columns]
        body = [[plain(row[i]).replace("\n", " ") if i < len(row) else "" for i in range(len(heads))] for row in rows]
        if title:
            self.line(title, "bold", INDENT)
        for part in _render(heads, body, self._console.width):
            self._print(part)

    def _print(self, renderable: RenderableType) -> None:
        if self.lost:
            return
        self._console.print(renderable)
        lines = self._rendered.getvalue().splitlines()
        self._rendered.seek(0)
        self._rendered.truncate()
        self.write("".join(f"{line.rstrip()}\n" for line in lines))


def _render(heads: list[str], body: list[list[str]], width: int) -> Iterable[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    layout = arrange(heads, body, width)
    if not layout.below:
        yield _rich_table(heads, body, layout)
        return

    def line(row: list[str], style: str) -> Text:
        cells = [Text(row[i]) for i in layout.beside]
        for cell, (i, wide) in zip(cells, layout.beside.items(), strict=True):
            cell.align("right" if i in layout.right else "left", wide)
        return Text.assemble(" " * INDENT, Text(" " * GAP).join(cells), style=style, no_wrap=layout.fits)

    label = max(len(heads[i]) for i in layout.below)
    yield line(heads, "dim")
    for row in body:
        yield line(row, "")
        for i in layout.below:
            if row[i].strip():
                yield Padding(_entry(f"{heads[i]:<{label}}", row[i]), (0, 0, 0, 2 * INDENT))


def _entry(label: str, value: str) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, GAP, 0, 0))
    grid.add_row(Text(label, "dim", no_wrap=True), Text(value))
    return grid


def _rich_table(heads: list[str], body: list[list[str]], layout: Layout) -> RenderableType:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
    for i, wide in layout.beside.items():
        name = i == 0 or (layout.fits and not any(" " in row[i] for row in body))
        justify: JustifyMethod = "right" if i in layout.right else "left"
        table.add_column(Text(heads[i]), no_wrap=name, overflow="fold", justify=justify, width=wide if layout.fits else None)
    for row in body:
        table.add_row(*(Text(row[i]) for i in layout.beside))
    return Padding(table, (0, 0, 0, INDENT))
