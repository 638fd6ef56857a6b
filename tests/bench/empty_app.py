"""The least a Textual app with a table can be: what qtui's first frame is measured against."""

from textual.app import App, ComposeResult
from textual.widgets import DataTable


class Empty(App[None]):
    """One table, no rows."""

    BINDINGS = [("q", "quit", "Quit")]

    def compose(self) -> ComposeResult:
        yield DataTable()


if __name__ == "__main__":
    Empty().run()
