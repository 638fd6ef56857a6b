"""The app with an engine that posts 100,000 events a second: ``QTUI_FLOOD`` names the file that is told how many it were."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from engine.events import event as ev
from engine.events.cancellation import StopToken
from engine.recipe.decisions import Answer
from qtui.app import QtuiApp
from qtui.session import Session

BURST, PAUSE = 1000, 0.01


class Flood:
    """A training whose every step is told, without any work between them."""

    def examine(self) -> dict[str, Any]:
        return {"isa": "none", "threads": 1, "gpus": []}

    def run(self, recipe: Mapping[str, Any], stop: StopToken) -> Generator[ev.Event, Answer, None]:
        yield ev.StageStarted("qat", "Training")
        start, count, steps = time.perf_counter(), 0, 10**9
        try:
            while True:
                stop.check()
                for _ in range(BURST):
                    count += 1
                    if count % 2:
                        yield ev.Step("qat", 1, 1, count, steps, 1.0 / (1 + count % 97), 0.002)
                    elif count % 100:
                        yield ev.Progress("qat", count, steps, "img", 1e5, 1.0)
                    else:
                        yield ev.Notice(f"line {count}")
                time.sleep(max(0.0, start + count * PAUSE / BURST - time.perf_counter()))
        finally:
            Path(os.environ["QTUI_FLOOD"]).write_text(f"{count} {time.perf_counter() - start}")

    def resume(self, directory: Path, stop: StopToken) -> Generator[ev.Event, Answer, None]:
        raise NotImplementedError

    def train(self, model: str, data: str, stop: StopToken) -> Generator[ev.Event, Answer, None]:
        raise NotImplementedError


if __name__ == "__main__":
    session = Session(Flood())
    code = QtuiApp(session).run()
    session.close()
    sys.exit(code or 0)
