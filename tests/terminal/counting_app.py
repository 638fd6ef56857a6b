"""A small app for the terminal tests: it shows which keys it received; ``q`` ends it.

``--hangup FILE SECONDS``: SIGHUP and SIGTERM run a thread of that many seconds which writes FILE, then the app exits.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from textual import events
from textual.app import App, ComposeResult
from textual.widgets import Static

from qtui.hangup import Hangup
from qtui.terminal import driver_class


class Counting(App[None]):
    """Counts keys and pastes."""

    CSS = "#log { height: 1; }"

    def __init__(self) -> None:
        super().__init__(driver_class=None if "--stock" in sys.argv else driver_class())
        self.keys = 0
        self.pasted = 0
        self.last: list[str] = []
        self.hangup: Hangup | None = None

    def compose(self) -> ComposeResult:
        yield Static("keys 0 pasted 0", id="count")
        yield Static("", id="log")
        yield Static("\n".join(f"row {n} {'·' * 60}" for n in range(18)), markup=False)

    def on_mount(self) -> None:
        if "--hangup" in sys.argv:
            self.hangup = Hangup(self.lost)
            self.hangup.install()
        if "--flood" in sys.argv:
            self.set_interval(1 / 50, self.flood)
        self.show()

    def on_unmount(self) -> None:
        if self.hangup is not None:
            self.hangup.restore()

    def on_key(self, event: events.Key) -> None:
        self.keys += 1
        self.last = [*self.last[-5:], event.key]
        self.show()
        if event.key == "q":
            self.exit()

    def on_paste(self, event: events.Paste) -> None:
        self.pasted += len(event.text)
        self.show()

    def show(self) -> None:
        self.query_one("#count", Static).update(f"keys {self.keys} pasted {self.pasted} pid {os.getpid()}")
        self.query_one("#log", Static).update(" ".join(self.last), layout=False)

    def flood(self) -> None:
        self.query_one("#log", Static).update(f"{time.perf_counter():.9f} " * 6)

    def lost(self, number: int) -> None:
        file, seconds = sys.argv[sys.argv.index("--hangup") + 1 :][:2]

        def save() -> None:
            time.sleep(float(seconds))
            with Path(file).open("a") as out:
                out.write(f"{number}\n")
            self.call_from_thread(self.exit)

        threading.Thread(target=save).start()


if __name__ == "__main__":
    app = Counting()
    app.run()
    sys.exit(app.return_code or 0)
