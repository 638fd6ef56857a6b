"""export: the chosen model as files, each read back by its own runtime and compared with the model that was measured."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.data.images.base import Data
from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice
from engine.export.base import Given
from engine.export.making import Comparison, exports, timed
from engine.export.registry import FORMATS
from engine.kernels.probe import Machine
from engine.lowering.graph.runtime import QuantizedModel
from engine.recipe.recipe import Recipe
from engine.report.runtimes import fastest
from engine.runs.stages.load import Loaded

_IMAGES = 128


class Place(Protocol):
    """A run's folder."""

    path: Any

    def expect(self, names: Any) -> None: ...


def export(
    model: QuantizedModel, recipe: Recipe, loaded: Loaded, machine: Machine, where: Place, entry: Mapping[str, Any],
    fp32: Mapping[str, nn.Module], stop: StopToken,
) -> Generator[Event, None, dict[str, Any]]:  # fmt: skip
    """Contract 2's ``exports``: ``model.safetensors``, which is in the folder already, then what the recipe asks for beside it;
    and ``runtimes``, their times beside those of ``fp32``, the baseline's forms. ``entry`` holds the latencies that were measured
    of ``model``."""
    names = ("safetensors", *(name for name in recipe.export if name != "safetensors"))
    where.expect(file for name in names for file in FORMATS[name].files)
    given = Given(model, images(loaded.data), dict(loaded.model.named_modules()), recipe.to_yaml(), machine.instructions, recipe.model)
    test = Comparison(loaded.data, recipe.data.batch, recipe.data.limit, fp32)
    entries: list[dict[str, Any]] = []
    runners = yield from exports(names, given, where.path, test, stop, entries)
    found = {"exports": entries, "runtimes": (yield from timed(entries, runners, test, stop, entry))}
    if said := fastest(found):
        yield Notice(said)
    return found


def images(data: Data) -> Tensor:
    """Training images for what an export has to calibrate."""
    return torch.cat([x for x, _ in data.batches("train", 32, limit=_IMAGES)])
