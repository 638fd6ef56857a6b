"""QAT of islands: each one's fake-quantized graph in its place in the model, whose Python and all else stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engine.events.event import Event, Notice
from engine.lowering.graph.layout import Layout
from engine.lowering.graph.prepare import Prepared
from engine.lowering.graph.qat import closest, distilling, schedule_of
from engine.lowering.islands.union import Part
from engine.lowering.islands.within import IslandForward, WatchingForward, WithForwards
from engine.models.memory import channels_last, laid_out
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor
from engine.recipe.recipe import QatPart, Threshold
from engine.tasks.base import Batch, Task
from engine.training.loop import fit
from engine.training.task_model import TaskBatches, TaskModel
from engine.training.trainable import Fitted, TrainingContext


@dataclass(frozen=True)
class Trained:
    """Of each island in order the float graph with the trained parameters; the grids and integers of all."""

    graphs: tuple[fx.GraphModule, ...]
    grids: Mapping[str, QParams]
    weights: Mapping[str, QTensor]
    fitted: Fitted


class _Student(WithForwards):
    """``root`` with the islands' fake-quantized graphs, which are its submodules, in their places."""

    def __init__(self, root: nn.Module, parts: Sequence[Part], prepared: Sequence[Prepared]) -> None:
        forwards = {
            part.path: IslandForward(part.call, part.taken, root.get_submodule(part.path).forward, partial(_flat, island.model))
            for part, island in zip(parts, prepared, strict=True)
        }
        super().__init__(root, forwards)
        self.graphs = nn.ModuleList([island.model for island in prepared])


def _flat(graph: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    return graph(*laid_out(inputs))


class _FakeQuantized(TaskModel):
    """As the training loop takes it: from end to end, or each island by itself on what fp32's is given."""

    def __init__(
        self, student: _Student, parts: Sequence[Part], prepared: Sequence[Prepared], task: Task, loss: Any, freeze_after: float
    ) -> None:
        super().__init__(student, task, loss)
        self._student, self._parts, self._prepared, self._freeze_after = student, parts, prepared, freeze_after
        self.each = False

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return [group for island in self._prepared for group in island.groups(weight_decay)]

    def before_epoch(self, epoch: int) -> None:
        super().before_epoch(epoch)
        for island in self._prepared:
            island.freeze(epoch > self._freeze_after)

    def loss(self, batch: Batch) -> Tensor:
        return self._of_each(batch) if self.each else super().loss(batch)

    def _of_each(self, batch: Batch) -> Tensor:
        """How far each island's results are from fp32's, on fp32's inputs, as a part of their power."""
        calls = _calls(self._student.root, self._parts, batch.laid_out())
        parts = []
        for number, inputs, wanted in calls:
            found = self._prepared[number].model(*laid_out(inputs))
            for got, aim in zip(found if isinstance(found, tuple) else (found,), wanted, strict=True):
                if aim.is_floating_point() and aim.numel():
                    parts.append(F.mse_loss(got, aim) / aim.square().mean().clamp_min(1e-12))
        return torch.stack(parts).mean()


def _calls(root: nn.Module, parts: Sequence[Part], batch: Batch) -> list[tuple[int, tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Each call of an island in one forward of fp32: its number, its inputs and its results."""
    found: list[tuple[int, tuple[Tensor, ...], tuple[Tensor, ...]]] = []

    def seen(number: int, graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
        results = graph(*laid_out(inputs))
        found.append((number, inputs, results if isinstance(results, tuple) else (results,)))

    forwards = {
        part.path: WatchingForward(part.call, part.taken, root.get_submodule(part.path).forward, partial(seen, number, part.graph))
        for number, part in enumerate(parts)
    }
    with torch.no_grad():
        WithForwards(root, forwards)(*batch.args, **batch.kwargs)
    return found


def train(
    root: nn.Module, parts: Sequence[Part], start: Sequence[Part], layout: Layout, grids: Mapping[str, QParams],
    weights: Mapping[str, QTensor], task: Task, part: QatPart, threshold: Threshold, seed: int, context: TrainingContext,
) -> Generator[Event, None, Trained]:  # fmt: skip
    """The epoch that is best on the validation split. ``parts`` are fp32's islands, ``start`` those that training begins from.

    The loss is the task's, and the distance from fp32's outputs. Where no gradient comes through what runs between the islands, or
    there are no outputs to compare one by one, each island learns by itself to give what fp32's gives.
    """
    torch.manual_seed(seed)
    if context.device != "cpu":
        root = copy.deepcopy(root).to(context.device)
        parts = [Part(p.path, channels_last(copy.deepcopy(p.graph), context.device), p.call, p.names) for p in parts]
    prepared = [Prepared(p.graph, p.of_layout(layout), grids, p.of_nodes(weights)) for p in start]
    for island in prepared:
        channels_last(island.model, context.device)
    student = _Student(root, start, prepared)
    schedule = schedule_of(part, seed)
    loss = distilling(task, root, part.distill, threshold)
    trained = _FakeQuantized(student, parts, prepared, task, loss, part.freeze_bn * part.epochs)
    if reason := _no_gradient(trained, task, schedule.batch, context.device):
        trained.each = True
        yield Notice(f"each island is trained by itself on what fp32's is given: {reason}")

    batches, judge = TaskBatches(task, schedule, context.device), closest(task, student, root, threshold, schedule, context)
    fitted = yield from fit(trained, batches, judge, schedule, context)
    student.load_state_dict(fitted.best)
    graphs = tuple(island.graph() for island in prepared)
    found: dict[str, QTensor] = {}
    for island, graph in zip(prepared, graphs, strict=True):
        found |= island.weights(graph)
    return Trained(graphs, {name: grid for island in prepared for name, grid in island.grids().items()}, found, fitted)


def _no_gradient(trained: _FakeQuantized, task: Task, batch: int, device: str) -> str:
    """Why the whole model cannot be trained from end to end, empty where it can."""
    first = next(task.batches("train", batch=batch, limit=min(batch, 2), device=device))
    try:
        loss = trained.loss(first)
        if not bool(torch.isfinite(loss)):
            return "the loss of the whole model is not finite"
        if not loss.requires_grad:
            return "no gradient comes through the model's forward"
        parameters = [p for p in trained.parameters() if p.requires_grad]
        if all(grad is None for grad in torch.autograd.grad(loss, parameters, allow_unused=True)):
            return "no gradient comes through the model's forward"
    except Exception as error:
        return f"its outputs cannot be compared one by one ({type(error).__name__})"
    return ""
