"""A small app for the terminal tests: a table in one of the themes."""

from __future__ import annotations

import os

from textual.app import App, ComposeResult
from textual.widgets import DataTable, Static

from qtui import themes


class Themed(App[None]):
    """A table with a cursor over rows, and a line in each colour of a meaning."""

    CSS = """
    DataTable { height: 8; }
    #warning { color: $warning; } #error { color: $error; } #success { color: $success; } #muted { color: $text-muted; }
    """

    def __init__(self) -> None:
        super().__init__()
        themes.register(self)
        self.theme = themes.theme_for(os.environ)

    def compose(self) -> ComposeResult:
        table: DataTable[str] = DataTable(cursor_type="row")
        table.add_columns("layer", "bits")
        table.add_rows([("conv1", "8"), ("conv2", "8"), ("fc", "4")])
        yield table
        for name in ("warning", "error", "success", "muted"):
            yield Static(name, id=name)


if __name__ == "__main__":
    Themed().run()
