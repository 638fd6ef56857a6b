"""Train a baseline in fp32 where no weights exist."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from engine.cancel import StopToken
from engine.data.base import Data
from engine.events import Event, Notice, StageFinished, StageStarted
from engine.models.registry import ModelEntry
from engine.paths import check_writable, save
from engine.training import Schedule, accuracy, fit

# What reaches the accuracy that the README states, for a small CNN on two cores.
DEFAULTS = {"digits": Schedule(epochs=20, batch=32, lr=0.02), "cifar10": Schedule(epochs=30, batch=128, lr=0.05)}
OTHERWISE = Schedule(epochs=20, batch=64, lr=0.02)


def schedule_for(data: str) -> Schedule:
    return DEFAULTS.get(data, OTHERWISE)


@dataclass(frozen=True)
class Baseline:
    weights: Path
    record: Path
    validation: float
    test: float


def train_baseline(
    entry: ModelEntry, data: Data, out: Path, schedule: Schedule, command: str, stop: StopToken, device: str = "cpu"
) -> Generator[Event, None, Baseline]:
    """Train ``entry`` on ``data``; the epoch that is best on validation is written to ``out`` (safetensors), and beside
    it a JSON record with the command, the seed and the accuracy on the test split."""
    from safetensors.torch import save as to_safetensors

    yield StageStarted("train", f"training {entry.name} on {data.name}: {schedule.epochs} epochs on {data.count('train'):,} images")
    check_writable(out)
    start = time.perf_counter()
    torch.manual_seed(schedule.seed)
    model = entry.build(len(data.classes)).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    identity = json.dumps([entry.name, data.name, asdict(schedule), torch.__version__])
    checkpoint = out.with_suffix(".checkpoint.pt")
    fitted = yield from fit(model, data, schedule, stage="train", stop=stop, device=device, checkpoint=checkpoint, fingerprint=identity)
    model.load_state_dict(fitted.best)
    test = accuracy(model, data, "test", 256, stop, device)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    record = {
        "model": entry.name, "data": data.name, "command": command, "seed": schedule.seed, "schedule": asdict(schedule),
        "best_epoch": fitted.epoch, "validation_accuracy": round(fitted.value, 4), "test_accuracy": round(test, 4),
        "test_images": data.count("test"), "torch": torch.__version__.split("+")[0], "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    save(out, to_safetensors(state))
    save(out.with_suffix(".json"), (json.dumps(record, indent=2) + "\n").encode())
    checkpoint.unlink(missing_ok=True)
    yield Notice(f"best epoch {fitted.epoch}: {fitted.value:.2%} on validation, {test:.2%} on the {data.count('test'):,} test images")
    yield StageFinished("train", time.perf_counter() - start)
    return Baseline(out, out.with_suffix(".json"), fitted.value, test)
