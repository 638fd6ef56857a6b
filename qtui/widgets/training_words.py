"""What is said and listed about a training, of a baseline or with quantization: pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from engine.events.event import EpochFinished, Progress
from engine.tasks.metrics import ACCURACY, Metric, known
from qtui import text
from qtui.drawing.rows import Cell, Column, Row
from qtui.machine_line import Look
from qtui.state import Training

COLUMNS = (
    Column("epoch", "epoch", align="right", priority=9),
    Column("loss", "loss", align="right", priority=8),
    Column("value", "validation", align="right", priority=9),
    Column("gain", "over PTQ", align="right", priority=6),
    Column("lr", "lr", align="right", priority=5),
    Column("best", "", priority=7),
)


@dataclass(frozen=True)
class View:
    """All that a training pane shows.

    ``name`` heads the pane (``QAT``, ``baseline``). ``lines`` are values to compare the validation metric with: (name, value),
    as ``("fp32", 0.9931)``. ``progress`` is that of the epoch that runs. ``status`` says what is going on when no epoch runs
    (``paused``, ``measuring the trained model``); ``running`` is whether anything does. ``machine`` is what it takes of the machine.
    """

    name: str
    training: Training = field(default_factory=Training)
    progress: Progress | None = None
    lines: tuple[tuple[str, float], ...] = ()
    metric: str | Metric = ACCURACY
    status: str = ""
    running: bool = True
    machine: tuple[Look, ...] = ()

    @property
    def measure(self) -> Metric:
        """The metric on the validation split."""
        return known(self.metric)


@dataclass(frozen=True)
class Series:
    """The points of both charts: loss by step, the mean loss and the validation metric at the end of each epoch, and where the
    x axis ends. ``scale`` turns the metric into what is drawn: per cent for an accuracy."""

    steps: tuple[tuple[float, float], ...]
    means: tuple[tuple[float, float], ...]
    values: tuple[tuple[float, float], ...]
    best: tuple[float, float] | None
    last_step: float
    last_epoch: float


def series(view: View) -> Series:
    training, scale = view.training, view.measure.scale
    epochs = max([e.epochs for e in training.epochs[-1:]] + ([training.now.epochs] if training.now else []) + [1])
    length = steps_per_epoch(training) or 1.0
    means = tuple((e.epoch * length, e.loss) for e in training.epochs if math.isfinite(e.loss))
    values = tuple((float(e.epoch), scale * e.value) for e in training.epochs if math.isfinite(e.value))
    best = training.best
    return Series(
        tuple((float(step), loss) for step, loss in training.steps if math.isfinite(loss)), means, values,
        (float(best.epoch), scale * best.value) if best and math.isfinite(best.value) else None, epochs * length, float(epochs),
    )  # fmt: skip


def steps_per_epoch(training: Training) -> float | None:
    now = training.now
    return now.total / now.epochs if now is not None and now.epochs > 0 and now.total > 0 else None


def validating(training: Training) -> bool:
    """Whether the epoch's steps are done and the model is being judged."""
    now, length = training.now, steps_per_epoch(training)
    if now is None or length is None or now.done < now.epoch * length:
        return False
    return not any(e.epoch == now.epoch for e in training.epochs)


def share(view: View) -> tuple[float, float]:
    """Steps done, of how many in the whole training; all of them once it is over."""
    now = view.training.now
    if now is None:
        return (1.0, 1.0) if view.training.epochs and not view.running else (0.0, 1.0)
    return (float(now.total), float(now.total)) if over(view) else (float(now.done), float(now.total))


def over(view: View) -> bool:
    """Whether no further epoch comes, as far as the epochs tell."""
    epochs = view.training.epochs
    return bool(epochs) and epochs[-1].epoch >= epochs[-1].epochs


def title(view: View) -> str:
    """``QAT ─ epoch 3 of 5 ─ step 812 of 1,250``."""
    training, now = view.training, view.training.now
    if now is None:
        if not training.epochs:
            return view.name
        last = training.epochs[-1]
        return f"{view.name} ─ {last.epoch} of {last.epochs} epochs"
    if over(view) or not view.running:
        done = training.epochs[-1].epoch if training.epochs else 0
        return f"{view.name} ─ {done} of {now.epochs} epochs done"
    where = "validating" if validating(training) else f"step {now.done:,} of {now.total:,}"
    return f"{view.name} ─ epoch {now.epoch} of {now.epochs} ─ {where}"


def line(view: View) -> tuple[float, float, str, str]:
    """Done and total of the whole training, rate, and time left; or what is going on in place of the last two."""
    done, total = share(view)
    if view.status or view.progress is None or not view.running or view.progress.rate is None:
        return done, total, view.status, ""
    left = seconds_left(view)
    return done, total, text.rate(view.progress.rate, view.progress.unit), "" if left is None else text.left(left)


def loss_title(view: View, log: bool) -> str:
    """``loss ─ log ─ lr 0.0071``."""
    parts = ["loss", *(["log"] if log else [])]
    if view.training.now is not None and view.running and not over(view):
        parts.append(f"lr {text.tidy(view.training.now.lr, '.2g')}")
    return " ─ ".join(parts)


def seconds_left(view: View) -> float | None:
    """Until the last epoch's last step: progress counts the images of one epoch."""
    now, progress, length = view.training.now, view.progress, steps_per_epoch(view.training)
    if now is None or length is None or progress is None or not progress.rate or validating(view.training):
        return None
    left = (now.total - (now.epoch - 1) * length) / length * progress.total - progress.done
    return max(left, 0.0) / progress.rate


def columns(view: View) -> tuple[Column, ...]:
    """Without PTQ to compare with there is no column for it."""
    return COLUMNS if dict(view.lines).get("PTQ") is not None else tuple(column for column in COLUMNS if column.key != "gain")


def rows(view: View) -> tuple[Row, ...]:
    """The epochs, the latest last."""
    ptq = dict(view.lines).get("PTQ")
    best = view.training.best
    return tuple(_row(e, view.measure, ptq, best is not None and e.epoch == best.epoch) for e in view.training.epochs)


def _row(e: EpochFinished, metric: Metric, ptq: float | None, best: bool) -> Row:
    gain = () if ptq is None else (difference(metric, e.value - ptq),)
    value = text.metric(metric, e.value) if math.isfinite(e.value) else "–"
    mark = Cell("● best", "good") if best else ""
    return Row(str(e.epoch), (str(e.epoch), _finite(e.loss, ".4f"), value, *gain, _finite(e.lr, ".2g"), mark), role="title" if best else "")


def _finite(value: float, form: str) -> str:
    return text.tidy(value, form) if math.isfinite(value) else "–"


def difference(metric: str | Metric, by: float) -> str:
    """``+0.7`` points of an accuracy."""
    found = known(metric)
    if not math.isfinite(by):
        return "–"
    if found.digits == Metric.digits and found.unit != "%":
        return "0" if not by else f"{'+' if by > 0 else ''}{text.tidy(by, '.3g')}"
    by *= found.scale
    return "0.00" if abs(by) < 0.005 else f"{by:+.2f}"


def best_so_far(view: View) -> str:
    """The sentence below the charts while training goes on, and after it."""
    best = view.training.best
    if best is None:
        if view.training.now is None:
            return "Training begins: after each epoch the model is judged on validation images, and the best one is kept."
        return "After each epoch the model is judged on validation images; the best one is kept, whatever comes after it."
    found = f"{text.titled(view.metric, best.value)} on validation{_compared(view, best)}"
    if view.running and not over(view):
        return f"Best so far: epoch {best.epoch}, {found}. It is kept if you stop."
    last = view.training.epochs[-1].epoch
    return f"The best of {last} epoch{'' if last == 1 else 's'} is epoch {best.epoch}: {found}."


def _compared(view: View, best: EpochFinished) -> str:
    for name in ("PTQ", "fp32"):
        base = dict(view.lines).get(name)
        if base is None:
            continue
        metric = view.measure
        if metric.digits == Metric.digits and metric.unit != "%":
            same = metric.bare(best.value) == metric.bare(base)
            return f", the same as {name}" if same else f", {'over' if best.value > base else 'under'} {name}'s {metric.bare(base)}"
        by = metric.scale * (best.value - base)
        unit = " points" if metric.unit == "%" else ""
        if abs(by) < 0.005:
            return f", the same as {name}"
        return f", {abs(by):.1f}{unit} {'over' if by > 0 else 'under'} {name}" if abs(by) >= 0.1 else (
            f", {abs(by):.2f}{unit} {'over' if by > 0 else 'under'} {name}"
        )  # fmt: skip
    return ""
