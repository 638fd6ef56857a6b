"""What a rank that is not the first does while the app is open on rank 0: it takes part in the runs that are begun there."""

from __future__ import annotations

from pathlib import Path

from engine.errors import Cancelled, EngineError
from engine.events.cancellation import StopToken


def follow() -> int:
    """Until the app is closed, or a run is stopped: the app goes on by itself then. It says nothing, and its end is no crash."""
    from engine.machine import ranks
    from engine.recipe.recipe import Recipe
    from engine.runs import pipeline
    from qtui.interrupts import Interrupts

    stop = StopToken()
    with Interrupts(stop, speaks=False):
        try:
            ranks.join()
            while True:
                what, order = ranks.of_first(("", ""))
                if what == "run":
                    steps = pipeline.run(Recipe.model_validate_json(order), None, stop, attended=True)
                else:
                    steps = pipeline.resume(Path(order), stop, attended=True)
                # Questions are answered at rank 0.
                for _ in steps:
                    pass
        except (Cancelled, EngineError, KeyboardInterrupt):
            return 0
