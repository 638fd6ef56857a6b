"""What the training's screen shows of a run, and the sentence below it: pure functions of the state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from engine.events.event import EpochFinished
from qtui import text
from qtui.screens.calibrate_work import status
from qtui.stage_table import digit
from qtui.state import Run, State, Training
from qtui.widgets import training_words as words
from qtui.widgets.training_words import View


def view(state: State) -> View:
    """The training of the run that is shown, whether it goes on, was stopped or is long done."""
    run = state.run
    running = state.busy and run.at == "train"
    progress = run.progress if run.phase == "qat" else None
    return View("QAT", training(run), progress, lines(run), run.metric, _status(state, running), running, run.machine)


def training(run: Run) -> Training:
    """What the run's events told of its training, or else what its report keeps of it."""
    if run.training.epochs or run.training.now:
        return run.training
    found = _figures(run, "qat")
    losses, values = found.get("loss") or (), found.get("validation_values") or ()
    asked = int(found.get("asked_epochs") or len(losses))
    epochs = tuple(
        EpochFinished(i, asked, _number(loss), _number(value), math.nan, i == found.get("best_epoch"), "qat")
        for i, (loss, value) in enumerate(zip(losses, values, strict=False), 1)
    )
    return Training(epochs=epochs)


def lines(run: Run) -> tuple[tuple[str, float], ...]:
    """What the validation metric is compared with: fp32 and PTQ on the same images."""
    found = _figures(run, "ptq").get("validation") or {}
    pairs = (("fp32", found.get("baseline")), ("PTQ", found.get("value")))
    return tuple((name, float(value)) for name, value in pairs if isinstance(value, int | float) and math.isfinite(value))


def any_training(state: State) -> bool:
    """Whether there is something to draw: epochs or steps, or a training that has begun."""
    found = training(state.run)
    return bool(found.epochs or found.now) or (state.busy and state.run.at == "train")


def empty(state: State) -> str:
    """What stands in the place of the charts of a run that was not trained."""
    if state.asking == "qat":
        return f"Nothing was trained in this run: t on the calibration ({digit('calibrate')}) trains it."
    if state.run.report:
        return f"Nothing was trained in this run.\nt in the report ({digit('report')}) runs it again with training."
    return "Nothing was trained in this run.\nTraining follows the calibration, from its ranges."


def sentence(state: State) -> str:
    """How training stands, and what becomes of it."""
    if not any_training(state):
        return "Training with quantization in the loop (QAT) wins back what rounding has cost."
    shown = view(state)
    job = state.job
    if shown.running and job is not None and job.stopping:
        return "stopping … what was learned so far is kept."
    if shown.running and job is not None and job.ending:
        return "ending … the best epoch is kept, and measured next."
    best = words.best_so_far(shown)
    if shown.running:
        return f"{best} Its figures are being measured now." if state.run.phase not in ("", "qat") else best
    if why := str(_figures(state.run, "qat").get("why") or ""):
        return f"{best} {text.spaced(why)}."
    if state.run.stopped:
        # A best epoch is worth its words; what is said before the first is not.
        stopped = f"Training was stopped: r on the first screen ({digit('model')}) goes on with it."
        return f"{best} {stopped}" if shown.training.epochs else stopped
    return best


def _status(state: State, running: bool) -> str:
    if not running:
        return "stopped" if state.run.stopped and not state.run.report else ""
    if held := status(state):
        return held
    return state.run.doing[:1].lower() + state.run.doing[1:] if state.run.phase not in ("", "qat") else ""


def _figures(run: Run, which: str) -> Mapping[str, Any]:
    return run.measured.get(which) or {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
