"""Train a baseline in fp32 where no weights exist."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from engine.data.images.base import Data
from engine.errors import Cancelled
from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice, StageFinished, StageStarted
from engine.models.memory import channels_last
from engine.models.registry import ModelEntry, Stem
from engine.models.weights_file import restore
from engine.paths import check_writable, save
from engine.tasks.base import Task
from engine.tasks.classification import Classification
from engine.tasks.fitting import check, first_images
from engine.tasks.items import ItemTask, tried
from engine.training.checkpoint import read as read_checkpoint
from engine.training.loop import fit
from engine.training.precision import precision
from engine.training.task_model import ItemSchedule, TaskBatches, TaskModel, measured, validation
from engine.training.trainable import TrainingContext

# What reaches the accuracy that the README states, for a small CNN on two cores.
DEFAULTS = {"digits": ItemSchedule(epochs=20, batch=32, lr=0.02), "cifar10": ItemSchedule(epochs=30, batch=128, lr=0.05)}
OTHERWISE = ItemSchedule(epochs=20, batch=64, lr=0.02)


# Deeper networks, at a rate that their normalization bears.
PUBLISHED = {
    "digits": ItemSchedule(epochs=10, batch=32, lr=0.02, mixed=True), "cifar10": ItemSchedule(epochs=60, batch=128, lr=0.1, mixed=True),
}  # fmt: skip
# Scans of 8×8 pixels, enlarged fourfold: the published stem brings them back to that, at an eighth of the arithmetic.
ENLARGED = ("digits",)


def schedule_for(data: str, entry: ModelEntry | None = None) -> ItemSchedule:
    """What is known to train ``entry`` (a small CNN where it is None) on ``data``."""
    if entry is not None and entry.published is not None:
        return PUBLISHED.get(data, ItemSchedule(epochs=20, batch=64, lr=0.02, mixed=True))
    fields = entry and (entry.schedule.get(data) or entry.schedule.get(""))
    if fields:
        return replace(OTHERWISE, **fields)
    return DEFAULTS.get(data, OTHERWISE)


# What torch takes by itself. Some published networks ask for 0.0003: statistics that follow over weeks of training.
LEAST_MOMENTUM = 0.1


def _hasten(model: nn.Module) -> None:
    """Let running statistics follow within some hundred steps."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.momentum is not None:
            module.momentum = max(module.momentum, LEAST_MOMENTUM)


@dataclass(frozen=True)
class Baseline:
    weights: Path
    record: Path
    validation: float
    test: float


def train_baseline(
    entry: ModelEntry, data: Data, out: Path, schedule: ItemSchedule, command: str, stop: StopToken, device: str = "cpu",
    stem: Stem = "auto",
) -> Generator[Event, None, Baseline]:  # fmt: skip
    """Train a classifier of the list on ``data``; see ``train_on``."""
    torch.manual_seed(schedule.seed)
    side = data.shape[1]
    begins = entry.stem("imagenet" if stem == "auto" and data.name in ENLARGED else stem, side)
    model = entry.build(len(data.classes), side, begins)
    check(model.eval(), first_images(data), data, entry.name)
    _hasten(model)
    notes = {"stem": begins} if entry.published and entry.published.has_small_stem else {}
    return (yield from train_on(Classification(data), model, entry.name, data.name, out, schedule, command, stop, device, notes))


def train_items(
    entry: ModelEntry, task: ItemTask, out: Path, schedule: ItemSchedule, command: str, stop: StopToken, device: str = "cpu"
) -> Generator[Event, None, Baseline]:
    """Train a model of the list on the items of ``task``; see ``train_on``."""
    torch.manual_seed(schedule.seed)
    model = entry.build(task.items.outputs, features=task.items.about.get("features"))
    tried(model.eval(), task, entry.name)
    _hasten(model)
    end = task.begin_training(model)
    return (yield from train_on(task, model, entry.name, task.items.name, out, schedule, command, stop, device, {}, end))


def train_on(
    task: Task, model: nn.Module, name: str, data: str, out: Path, schedule: ItemSchedule, command: str, stop: StopToken, device: str,
    notes: Mapping[str, str], end: Callable[[], None] | None = None,
) -> Generator[Event, None, Baseline]:  # fmt: skip
    """Train ``model`` on ``task``; the epoch that is best on validation is written to ``out`` (safetensors, with ``notes``), and beside
    it a JSON record with the command, the seed and the metric on the test split."""
    from safetensors.torch import save as to_safetensors

    count = task.count("train")
    yield StageStarted("train", f"training {name} on {data}: {schedule.epochs} epochs on {count:,} {task.plural}")
    check_writable(out)
    start = time.perf_counter()
    model = channels_last(model, device)
    metric = task.metric
    identity = json.dumps([name, data, asdict(schedule), torch.__version__, *notes.values()])
    checkpoint = out.with_suffix(".checkpoint.pt")
    context = TrainingContext(stop, "train", device, checkpoint, identity)
    judge = validation(model, task, schedule, context)
    try:
        fitted = yield from fit(TaskModel(model, task), TaskBatches(task, schedule, device), judge, schedule, context)
    except Cancelled:
        kept = read_checkpoint(checkpoint, identity)
        yield Notice("stopped; the same command goes on at this step" if kept else "stopped before an epoch was finished")
        raise
    restore(model, fitted.best)
    if end:
        end()
    test = measured(model, task, "test", min(256, schedule.batch * 8), stop, device)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    kind = {} if task.name == "classification" else {"task": task.name}
    values = {f"validation_{metric.name}": round(fitted.value, 4), f"test_{metric.name}": round(test, 4)}
    record = {
        "model": name, "data": data, **kind, "command": command, "seed": schedule.seed, "schedule": asdict(schedule),
        "best_epoch": fitted.epoch, **values, f"test_{task.plural}": task.count("test"), "torch": torch.__version__.split("+")[0],
        "seconds": round(time.perf_counter() - start, 1), "threads": torch.get_num_threads(),
        "precision": precision(schedule, device) or "float32", **notes,
    }  # fmt: skip
    save(out, to_safetensors(state, metadata=dict(notes) or None))
    save(out.with_suffix(".json"), (json.dumps(record, indent=2) + "\n").encode())
    checkpoint.unlink(missing_ok=True)
    value = f"{metric.titled(fitted.value)} on validation, {metric.titled(test)} on the {task.count('test'):,} test {task.plural}"
    yield Notice(f"best epoch {fitted.epoch}: {value}")
    yield StageFinished("train", time.perf_counter() - start)
    return Baseline(out, out.with_suffix(".json"), fitted.value, test)
