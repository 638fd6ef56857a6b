"""A person's own task: loaders of batches, a metric, and a loss if there is one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves

from engine import user_code
from engine.errors import EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice
from engine.models import computed_weights, custom
from engine.models.widened import tried_in_float32, with_float32
from engine.recipe.recipe import Recipe
from engine.tasks import fidelity
from engine.tasks.base import SPLITS, Batch, Split, Task
from engine.tasks.metrics import Metric, batched
from engine.tasks.outputs import normalized
from engine.tasks.own_batches import PARTS, Loader, Source, alike, batch_of, passes, split_off
from engine.tasks.own_evaluation import OwnEvaluator, directions, is_object, metric_of, name_of
from engine.tasks.subject import Subject, fingerprint

_OTHERS = "gives other batches each time it is read"


class OwnTask(Task):
    """What ``engine.Task.of`` makes: see there."""

    def __init__(
        self,
        sources: Mapping[Split, Source],
        metrics: Mapping[str, Any],
        loss: Callable[[Any, Any], Any] | None,
        options: Mapping[str, Any],
        notes: Sequence[str],
    ) -> None:
        self.name = str(options.get("name") or "own")
        self.item = str(options.get("item") or "item")
        self.unit = self.plural = f"{self.item}s"
        self.notes = tuple(notes)
        self._sources, self._functions, self._loss = dict(sources), dict(metrics), loss
        self.metrics = tuple(metric_of(name, function, options) for name, function in metrics.items())
        self._sizes: dict[Split, tuple[int, ...]] = {}
        self._structure: Any = None
        self._widened = False

    def batches(
        self, split: Split, *, batch: int, limit: int | None = None, seed: int | None = None, device: str = "cpu"
    ) -> Iterator[Batch]:
        """The loader's own batches, whatever ``batch`` asks; of one item alone the first item of the first batch."""
        left = limit
        for part in self._read(split, seed):
            part = part.first(left) if left is not None and part.count > left else part
            yield part.to(device)
            if left is not None:
                left -= part.count
                if left <= 0:
                    return

    def _read(self, split: Split, seed: int | None) -> Iterator[Batch]:
        source, number, found = self._sources[split], 0, 0
        for raw in passes(source.loader, split, seed):
            part = self._checked(self._widest(self._read_batch(raw, split, number)), split, number)
            number, whole = number + 1, part.count
            if source.parts is not None and source.by_item:
                part = part.items([i for i in range(whole) if (found + i) % PARTS in source.parts])
            elif source.parts is not None and (number - 1) % PARTS not in source.parts:
                part = replace(part, count=0)
            found += whole
            if part.count:
                yield part
        if number == 0:
            raise EngineError(f"the {split} loader of the task {self.name} gives no batch: it is empty, or was read before and is used up")

    def _read_batch(self, raw: Any, split: str, number: int) -> Batch:
        return batch_of(raw, split, number)

    def noted(self) -> None:
        """Note which loader gives other batches each time it is read, where that matters: of training data it does where other splits
        are taken off them."""
        told = tuple(note for note in self.notes if _OTHERS not in note)
        for split in SPLITS:
            source = self._sources[split]
            if split != "train" or source.parts is not None:
                first, again = (next(iter(passes(source.loader, split, None)), None) for _ in range(2))
                if not alike(first, again):
                    why = "figures of two forms may be of other items" if source.parts is None else "an item may be trained on and tested"
                    given = split if source.parts is None else "train"
                    told = (*told, f"{given} {_OTHERS}: {why}; give the same batches in the same order")
                    if source.parts is not None:
                        break
        self.notes = told

    def in_float32(self, asked: bool) -> None:
        """Whether inputs in another precision are given as float32."""
        self._widened, self._structure = asked, None

    def _widest(self, part: Batch) -> Batch:
        return replace(part, args=with_float32(part.args), kwargs=with_float32(dict(part.kwargs))) if self._widened else part

    def _checked(self, part: Batch, split: Split, number: int) -> Batch:
        """Raises EngineError for a batch of another structure than the first."""
        one = part.first(1) if any(isinstance(value, list) for value in (*part.args, *part.kwargs.values())) else part
        leaves, spec = tree_flatten((one.args, dict(one.kwargs)))
        structure = (str(spec), tuple((x.dim(), x.dtype) if isinstance(x, Tensor) else type(x) for x in leaves))
        if self._structure is None:
            self._structure = structure
        if structure != self._structure:
            raise EngineError(
                f"batch {number + 1} of {split} has inputs {_described(leaves)}, and the first one of another structure: "
                "give batches that are alike but for their size"
            )
        return part

    def count(self, split: Split, limit: int | None = None) -> int:
        count = sum(self._sizes_of(split))
        return count if limit is None else min(limit, count)

    def steps(self, split: Split, *, batch: int, limit: int | None = None) -> int:
        """The loader's own batches, whatever ``batch`` asks."""
        items = self.count(split, limit)
        return sum(begin < items for begin in accumulate(self._sizes_of(split)[:-1], initial=0))

    def _sizes_of(self, split: Split) -> tuple[int, ...]:
        """How many items each batch has."""
        if split not in self._sizes:
            self._sizes[split] = tuple(part.count for part in self._read(split, None))
            if not self._sizes[split]:
                raise EngineError(
                    f"the {split} split of the task {self.name} holds no {self.item}: give more data, or loaders for each split"
                )
        return self._sizes[split]

    def outputs(self, raw: Any) -> tuple[Tensor, ...]:
        found = super().outputs(normalized(raw))
        if not found:
            raise EngineError(
                f"the model returns {type(raw).__name__} without a tensor of floats: the task {self.name} can compare nothing"
            )
        return found

    def answers(self, outputs: tuple[Tensor, ...]) -> Tensor | None:
        """The largest of each row, where the targets are whole numbers and so are classes."""
        first = outputs[0]
        return first.argmax(1) if self._classes and first.dim() >= 2 and first.shape[1] > 1 else None

    _classes = False

    def evaluator(self) -> OwnEvaluator:
        return OwnEvaluator(self._functions)

    def loss(self, raw: Any, targets: Any) -> Tensor | None:
        if self._loss is None:
            return None
        found = user_code.called(f"loss of the task {self.name}", self._loss, normalized(raw), targets)
        if not isinstance(found, Tensor) or found.dim() != 0:
            shape = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise EngineError(f"loss of the task {self.name} returned {shape}: it must return one number, as a tensor")
        learns = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in tree_leaves(raw))
        if learns and not found.requires_grad:
            raise EngineError(
                f"loss of the task {self.name} has no gradient, so that nothing would be learned: "
                "compute it from the outputs with torch, without detach(), item(), argmax or NumPy"
            )
        return found

    def data(self, calibration: int, limit: int | None) -> dict[str, Any]:
        counts: dict[str, int] = {split: self.count(split) for split in SPLITS}
        return {
            "name": self.name, "calibration": min(calibration, counts["train"]), **counts, "test": self.count("test", limit),
            **({"notes": list(self.notes)} if self.notes else {}),
        }  # fmt: skip

    def tried(self, model: nn.Module, what: str) -> Batch:
        """The first training batch, once model, metric and loss have taken it. Raises EngineError in one line for what does not."""
        part = next(self._read("train", 0))
        with torch.no_grad():
            raw = user_code.called(what, model, *part.args, **part.kwargs)
        found = self.outputs(raw)
        if not all(torch.isfinite(x).all() for x in found):
            raise EngineError(f"{what} gives NaN or infinity on the first batch: check its weights and the data")
        self._classes = (
            isinstance(part.targets, Tensor) and not part.targets.is_floating_point() and part.targets.dim() == found[0].dim() - 1
        )
        evaluator = self.evaluator()
        evaluator.update(raw, part.targets)
        values = evaluator.compute(intervals=False)
        self.metrics = tuple(next((m for m in self.metrics if m.name == name), Metric(name)) for name in values)
        self.loss(raw, part.targets)
        self.workloads = (batched(1), batched(part.count)) if part.count > 1 else (batched(1),)
        return part


class UnlabelledTask(OwnTask):
    """A task without a metric: judged against fp32 alone, as fidelity is. Batches may be inputs alone."""

    judged_by_fp32: ClassVar[bool] = True

    def __init__(
        self, sources: Mapping[Split, Source], metrics: Mapping[str, Any], loss: None, options: Mapping[str, Any], notes: Sequence[str]
    ) -> None:
        super().__init__(sources, metrics, loss, options, notes)
        self.metrics = fidelity.metrics_of(False)

    def held_against(self, reference: Any, targets: Any) -> Any:
        return reference

    def answers(self, outputs: tuple[Tensor, ...]) -> Tensor | None:
        return fidelity.largest(outputs)

    def evaluator(self) -> Any:
        return fidelity.Distances()

    def settled(self, recipe: Recipe) -> Recipe:
        return fidelity.with_threshold(recipe)

    def _read_batch(self, raw: Any, split: str, number: int) -> Batch:
        if isinstance(raw, Tensor):
            raw = (raw, None)
        elif isinstance(raw, list | tuple) and len(raw) == 1:
            raw = (raw[0], None)
        return batch_of(raw, split, number)

    def tried(self, model: nn.Module, what: str) -> Batch:
        part = next(self._read("train", 0))
        with torch.no_grad():
            found = self.outputs(user_code.called(what, model, *part.args, **part.kwargs))
        if not all(torch.isfinite(x).all() for x in found):
            raise EngineError(f"{what} gives NaN or infinity on the first batch: check its weights and the data")
        self.metrics = fidelity.metrics_of(fidelity.largest(found) is not None)
        self.workloads = (batched(1), batched(part.count)) if part.count > 1 else (batched(1),)
        return part


def of(
    train: Loader,
    validation: Loader | None = None,
    test: Loader | None = None,
    *,
    metric: Any,
    loss: Callable[[Any, Any], Any] | None = None,
    name: str = "own",
    item: str = "item",
    unit: str = "",
    higher_is_better: bool | None = None,
) -> OwnTask:
    """A task from one's own loaders; see ``engine.Task.of``. Raises UsageError for what cannot be read twice or is no metric."""
    given: dict[str, Loader | None] = {"train": train, "validation": validation, "test": test}
    for split, loader in given.items():
        if loader is not None and not callable(loader) and not isinstance(loader, Iterable):
            raise UsageError(
                f"{split} is a {type(loader).__name__}: give a list of batches, a DataLoader, or a function that yields batches"
            )
        if isinstance(loader, Iterator):
            raise UsageError(
                f"{split} can be read once alone ({type(loader).__name__}): give the function that makes it, a list, or a DataLoader"
            )
    if metric is None:
        if loss is not None:
            raise UsageError("a task without a metric is judged against fp32 and distils from it: leave loss out, or give a metric")
        sources, notes = split_off(train, validation, test)
        return UnlabelledTask(sources, {}, None, {"name": name, "item": item}, notes)
    metrics = dict(metric) if isinstance(metric, Mapping) and not is_object(metric) else {name_of(metric): metric}
    if not metrics or not all(callable(one) or is_object(one) for one in metrics.values()):
        raise UsageError(
            "metric is neither a function (outputs, targets) -> number nor an object with update and compute, as torchmetrics has"
        )
    sources, notes = split_off(train, validation, test)
    if higher_is_better is None:
        notes += directions(metrics)
    options = {"name": name, "item": item, "unit": unit, "higher_is_better": higher_is_better}
    return OwnTask(sources, metrics, loss, options, notes)


def load(recipe: Recipe, stop: StopToken, device: str) -> Generator[Event, None, Subject]:
    """The model and the task that ``recipe`` names, both factories. Raises UsageError or EngineError in one line."""
    assert recipe.task is not None
    torch.manual_seed(recipe.seed)
    if not custom.is_custom(recipe.model):
        raise UsageError(f"{recipe.model} with a task of your own: give the model as path/file.py:factory too")
    task = user_code.made(recipe.task, "task")
    if not isinstance(task, OwnTask):
        raise EngineError(f"{recipe.task} returned {type(task).__name__}: return engine.Task.of(train=…, metric=…)")
    model, weights = custom.build_with(recipe.model, recipe.weights, task.name)
    return (yield from subject_of(model, task, device, weights, recipe.model))


def subject_of(model: nn.Module, task: OwnTask, device: str, weights: str, name: str) -> Generator[Event, None, Subject]:
    """``model`` and ``task`` held against each other. Raises EngineError in one line for what does not fit."""
    computed_weights.settle(model.eval())
    model.requires_grad_(False)

    def tried(widened: bool) -> Batch:
        task.in_float32(widened)
        return task.tried(model, f"{name}.forward")

    example, said = tried_in_float32(model, tried)
    if said:
        yield Notice(f"{name}: {said}")
    counts = {split: task.count(split) for split in SPLITS}
    task.noted()
    for note in task.notes:
        yield Notice(f"{task.name}: {note}")
    size = f"{sum(p.numel() for p in model.parameters()):,} parameters, weights {weights}"
    items = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    yield Notice(f"{name} with {size}; {task.name}: {task.plural}: {items}")
    return Subject(model, task, example, device, weights, fingerprint(model), "graph", {"weights": weights})


def _described(leaves: Sequence[Any]) -> str:
    return ", ".join(
        f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__ for x in leaves
    )
