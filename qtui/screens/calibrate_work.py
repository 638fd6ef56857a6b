"""The line that says how far calibration, conversion and measurement have come: pure functions of the state."""

from __future__ import annotations

from qtui import text
from qtui.state import State

_WHAT = {"timings": "timing", "runs": "timing tokens", "layers": "timing layers"}
"""What goes on, by the unit that is counted."""


def working(state: State) -> bool:
    """Whether the engine is at this stage's work, and not waiting for an answer."""
    return state.busy and state.asking is None and state.run.at == "calibrate"


def title(state: State) -> str:
    """``Calibrating on 512 training images ─ 384 of 512``."""
    progress = state.run.progress
    if progress is None or not progress.total:
        return state.run.doing
    parts = [state.run.doing, *([f"part {state.run.part}"] if state.run.part > 1 else []), _WHAT.get(progress.unit, "")]
    return " ─ ".join([part for part in parts if part] + [f"{progress.done:,} of {progress.total:,}"])


def status(state: State) -> str:
    """What holds the work up, if anything does."""
    job = state.job
    if job is None:
        return ""
    return "stopping …" if job.stopping else "paused: p goes on" if job.paused else ""


def line(state: State) -> tuple[int, int, str, str]:
    """Done, total, rate and time left of the bar; or what holds the work up in their place."""
    progress = state.run.progress
    if progress is None:
        return 0, 1, status(state) or "working …", ""
    if held := status(state):
        return progress.done, progress.total, held, ""
    rate = text.rate(progress.rate, progress.unit) if progress.rate is not None else ""
    # What follows the last image, such as the layers' noise, has no figure.
    left = text.left(progress.eta) if progress.eta is not None and progress.done < progress.total else ""
    return progress.done, progress.total, rate, left
