"""A person's own task: loaders of batches, a metric, and a loss if there is one."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from engine import user_code
from engine.errors import EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice
from engine.models import computed_weights, custom
from engine.models.widened import tried_in_float32, with_float32
from engine.recipe.recipe import Recipe
from engine.tasks import fidelity, pooling
from engine.tasks.base import SPLITS, Batch, Split, Task, one_each
from engine.tasks.metrics import Metric, MetricValue, batched
from engine.tasks.outputs import normalized
from engine.tasks.subject import Subject, fingerprint

_OTHERS = "gives other batches each time it is read"
Loader = Iterable[Any] | Callable[[], Iterable[Any]]
# Of every five batches (or items) of a single loader one is for choices and one for the report.
PARTS = 5
_TARGETS = ("targets", "target", "labels", "label", "y")
_LOWER_IS_BETTER = ("loss", "error", "mae", "mse", "rmse", "perplexity", "distance")
_RESAMPLES, _LEAST_SAMPLES = 200, 8
# Numbers of outputs and targets that are kept for an object: 64 MB.
_KEPT = 1 << 24
# Seconds in which an object has to be done with a split, to be asked hundreds of times.
_QUICK = 0.05


@dataclass(frozen=True)
class _Source:
    """One split: a loader, and which of its batches or items belong to it (None: all). ``by_item`` counts items of each batch."""

    loader: Loader
    parts: tuple[int, ...] | None = None
    by_item: bool = False


class OwnTask(Task):
    """What ``engine.Task.of`` makes: see there."""

    def __init__(
        self,
        sources: Mapping[Split, _Source],
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
        self.metrics = tuple(_metric(name, function, options) for name, function in metrics.items())
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
        for raw in _passes(source.loader, split, seed):
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
        return _batch(raw, split, number)

    def noted(self) -> None:
        """Note which loader gives other batches each time it is read, where that matters: of training data it does where other splits
        are taken off them."""
        told = tuple(note for note in self.notes if _OTHERS not in note)
        for split in SPLITS:
            source = self._sources[split]
            if split != "train" or source.parts is not None:
                first, again = (next(iter(_passes(source.loader, split, None)), None) for _ in range(2))
                if not _alike(first, again):
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
        self, sources: Mapping[Split, _Source], metrics: Mapping[str, Any], loss: None, options: Mapping[str, Any], notes: Sequence[str]
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
        return _batch(raw, split, number)

    def tried(self, model: nn.Module, what: str) -> Batch:
        part = next(self._read("train", 0))
        with torch.no_grad():
            found = self.outputs(user_code.called(what, model, *part.args, **part.kwargs))
        if not all(torch.isfinite(x).all() for x in found):
            raise EngineError(f"{what} gives NaN or infinity on the first batch: check its weights and the data")
        self.metrics = fidelity.metrics_of(fidelity.largest(found) is not None)
        self.workloads = (batched(1), batched(part.count)) if part.count > 1 else (batched(1),)
        return part


class OwnEvaluator:
    """A person's metrics over one split: functions of all outputs and targets, or objects with ``update`` and ``compute``."""

    def __init__(self, metrics: Mapping[str, Any]) -> None:
        self._functions = {name: metric for name, metric in metrics.items() if not _is_object(metric)}
        self._objects = {name: copy.deepcopy(metric) for name, metric in metrics.items() if _is_object(metric)}
        for metric in self._objects.values():
            metric.reset()
        self._outputs: list[Any] = []
        self._targets: list[Any] = []
        # Of an object, what it was given is kept while that is little: its items can then be drawn anew.
        self._kept = 0
        # A person's object says nothing of how two of it become one.
        self.pooled: Mapping[str, pooling.How] = {} if self._objects else {"_outputs": "sum", "_targets": "sum"}

    def update(self, raw: Any, targets: Any) -> None:
        raw = normalized(raw)
        if self._objects and self._kept <= _KEPT:
            self._kept += sum(x.numel() for x in tree_leaves((raw, targets)) if isinstance(x, Tensor))
        if self._functions or self._kept <= _KEPT:
            self._outputs.append(tree_map(_detached, raw))
            self._targets.append(tree_map(_detached, targets))
        for name, metric in self._objects.items():
            user_code.called(f"metric {name}", metric.update, raw, targets)

    def compute(self, intervals: bool = True) -> dict[str, MetricValue]:
        """Raises EngineError for a metric that returns no number."""
        found: dict[str, MetricValue] = {}
        for name, metric in self._objects.items():
            value = user_code.called(f"metric {name}", metric.compute)
            values = value if isinstance(value, Mapping) else {name: value}
            for key, one in values.items():
                again = self._again(metric, str(key)) if intervals else None
                low, high = (None, None) if again is None else _bootstrap(again, *self._everything())
                found[str(key)] = MetricValue(_number(str(key), one), low, high)
        if self._functions:
            outputs, targets = _joined(self._outputs), _joined(self._targets)
            for name, function in self._functions.items():
                value = _number(name, user_code.called(f"metric {name}", function, outputs, targets))
                low, high = _bootstrap(function, outputs, targets) if intervals else (None, None)
                found[name] = MetricValue(value, low, high)
        return found

    def chance(self) -> float | None:
        """The deciding metric of an answer that looks at nothing: the frequencies of the classes, or the mean of the targets. None for
        an object, and for outputs and targets of another form."""
        name = self._first
        if name is None:
            return None
        outputs, targets = _joined(self._outputs), _joined(self._targets)
        blind = _blind(outputs, targets)
        if blind is None:
            return None
        try:
            value = float(self._functions[name](blind, targets))
        except Exception:
            # A person's metric may want more of outputs than this knows.
            return None
        return value if math.isfinite(value) else None

    def difference_error(self, reference: OwnEvaluator) -> float | None:
        """The standard error of the deciding metric's difference from ``reference`` on the same items: of the paired bootstrap, and no
        less than what one item more would change, so that no difference on a few items is no proof of none. None where items cannot be
        resampled."""
        function, beside = self._deciding(), reference._deciding()
        if function is None or beside is None:
            return None
        targets = _joined(self._targets)
        mine, other = (_resamples(function, _joined(form._outputs), targets) for form in (self, reference))
        if not mine or not other:
            return None
        differences = [a - b for a, b in zip(mine, other, strict=True) if math.isfinite(a - b)]
        if len(differences) < 2:
            return None
        value, chance = float(beside(_joined(reference._outputs), targets)), reference.chance()
        one = abs(value - (chance or 0.0)) / (_count_of(targets) + 2)
        return max(statistics.stdev(differences), one)

    def _everything(self) -> tuple[Any, Any]:
        """Outputs and targets of the whole split."""
        return _joined(self._outputs), _joined(self._targets)

    def _again(self, metric: Any, key: str) -> Callable[[Any, Any], Any] | None:
        """An object as a function of a whole split, by the name ``key`` of its value; None where too much was given to it, or where it
        takes long."""
        if self._kept > _KEPT or not self._outputs:
            return None

        def value(outputs: Any, targets: Any) -> Any:
            one = copy.deepcopy(metric)
            one.reset()
            one.update(outputs, targets)
            found = one.compute()
            return found[key] if isinstance(found, Mapping) else found

        start = time.perf_counter()
        user_code.called(f"metric {key}", value, *self._everything())
        return value if time.perf_counter() - start < _QUICK else None

    def _deciding(self) -> Callable[[Any, Any], Any] | None:
        """The metric that decides, as a function of a whole split."""
        if not self._objects:
            return self._functions[self._first] if self._first is not None else None
        name, metric = next(iter(self._objects.items()))
        found = user_code.called(f"metric {name}", metric.compute)
        return self._again(metric, str(next(iter(found))) if isinstance(found, Mapping) else name)

    @property
    def _first(self) -> str | None:
        """The function that decides; None where an object does."""
        return None if self._objects else next(iter(self._functions), None)


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
        sources, notes = _split(train, validation, test)
        return UnlabelledTask(sources, {}, None, {"name": name, "item": item}, notes)
    metrics = dict(metric) if isinstance(metric, Mapping) and not _is_object(metric) else {_name_of(metric): metric}
    if not metrics or not all(callable(one) or _is_object(one) for one in metrics.values()):
        raise UsageError(
            "metric is neither a function (outputs, targets) -> number nor an object with update and compute, as torchmetrics has"
        )
    sources, notes = _split(train, validation, test)
    if higher_is_better is None:
        notes += _said_of_direction(metrics)
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


def _split(train: Loader, validation: Loader | None, test: Loader | None) -> tuple[dict[Split, _Source], list[str]]:
    """What each split reads, and how it was split off where it was not given."""
    missing = [split for split, loader in (("validation", validation), ("test", test)) if loader is None]
    if not missing:
        assert validation is not None and test is not None
        return {"train": _Source(train), "validation": _Source(validation), "test": _Source(test)}, []
    fixed, by_item = _in_order(train), _is_short(train)
    what = "item" if by_item else "batch"
    every = tuple(range(PARTS))
    taken: dict[str, tuple[int, ...]] = {split: (PARTS - 1 - i,) for i, split in enumerate(missing)}
    left = tuple(part for part in every if part not in {p for parts in taken.values() for p in parts})
    sources: dict[Split, _Source] = {"train": _Source(fixed, left, by_item)}
    for split, loader in (("validation", validation), ("test", test)):
        key: Any = split
        sources[key] = _Source(loader) if loader is not None else _Source(fixed, taken[split], by_item)
    note = f"{' and '.join(missing)} split off train: one {what} in {PARTS} each, by its place (in the data's own order, not shuffled)"
    return sources, [note]


def _in_order(loader: Loader) -> Loader:
    """The same data in a fixed order: a ``DataLoader`` that shuffles would put an item in another split at each pass."""
    if isinstance(loader, torch.utils.data.DataLoader) and isinstance(loader.sampler, torch.utils.data.RandomSampler):
        return torch.utils.data.DataLoader(
            loader.dataset, batch_size=loader.batch_size, shuffle=False, num_workers=loader.num_workers, collate_fn=loader.collate_fn
        )
    return loader


def _is_short(loader: Loader) -> bool:
    """Whether there are too few batches to share them out whole."""
    return not any(number + 1 >= 2 * PARTS for number, _ in enumerate(_passes(loader, "train", 0)))


def _passes(loader: Loader, split: str, seed: int | None) -> Iterator[Any]:
    """One pass over a loader, its errors told as its author's. What it draws at its start is drawn from ``seed``."""
    state = torch.get_rng_state()
    torch.manual_seed(0 if seed is None else seed)
    try:
        steps = user_code.called(f"the {split} loader", lambda: iter(loader() if callable(loader) else loader))
        while True:
            try:
                raw = next(steps)
            except StopIteration:
                return
            except EngineError:
                raise
            except (Exception, SystemExit) as error:
                raise user_code.failed(f"the {split} loader", error) from error
            if state is not None:
                torch.set_rng_state(state)
                state = None  # type: ignore[assignment]
            yield raw
    finally:
        if state is not None:
            torch.set_rng_state(state)


def _batch(raw: Any, split: str, number: int) -> Batch:
    """A batch in whatever form a loader gives it. Raises EngineError for what is none."""
    if isinstance(raw, Batch):
        return raw
    if isinstance(raw, Mapping):
        inputs, targets = _of_mapping(dict(raw), split)
    elif isinstance(raw, Sequence) and not isinstance(raw, str | bytes) and len(raw) == 2:
        inputs, targets = raw
    else:
        raise EngineError(
            f"batch {number + 1} of {split} is a {type(raw).__name__}: give (inputs, targets), a dict with a key {_TARGETS[0]!r} or "
            f"{_TARGETS[2]!r}, or engine.Batch"
        )
    if isinstance(inputs, list | tuple) and isinstance(targets, list | tuple) and len(inputs) == len(targets) and one_each(inputs):
        return Batch((list(inputs),), {}, list(targets), len(inputs))
    if isinstance(inputs, Mapping):
        part = Batch((), dict(inputs), targets)
    else:
        part = Batch(tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {}, targets)
    leaves = [x for x in tree_leaves((part.args, dict(part.kwargs))) if isinstance(x, Tensor)]
    if not leaves:
        raise EngineError(f"batch {number + 1} of {split} holds no tensor among its inputs: give tensors, tuples or dicts of them")
    count = len(leaves[0]) if leaves[0].dim() else 0
    if not count:
        raise EngineError(f"batch {number + 1} of {split} has an input without a batch dimension, or an empty one")
    several = next((len(x) for x in tree_leaves(targets) if isinstance(x, Tensor) and x.dim()), None)
    several = len(targets) if several is None and isinstance(targets, Sequence) and not isinstance(targets, str) else several
    if several is not None and several != count:
        raise EngineError(f"batch {number + 1} of {split} has {count} inputs and {several} targets: give one target for each input")
    return replace(part, count=count)


def _of_mapping(raw: dict[str, Any], split: str) -> tuple[Any, Any]:
    key = next((name for name in _TARGETS if name in raw), None)
    targets = raw.pop(key) if key else None
    inputs = raw.pop("inputs", None) if "inputs" in raw else None
    return (raw if inputs is None else inputs), targets


def _described(leaves: Sequence[Any]) -> str:
    return ", ".join(
        f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__ for x in leaves
    )


def _detached(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _joined(parts: list[Any]) -> Any:
    """The batches as one: tensors along their first dimension, lists one after the other."""
    if isinstance(parts[0], list):
        return [item for part in parts for item in part]
    flat = [tree_flatten(part) for part in parts]
    leaves = [
        torch.cat(column) if isinstance(column[0], Tensor) and column[0].dim() else column[0]
        for column in (list(some) for some in zip(*(leaves for leaves, _ in flat), strict=True))
    ]
    return tree_unflatten(leaves, flat[0][1])


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or (not isinstance(value, int | float) and not hasattr(value, "__float__")):
        raise EngineError(f"metric {name} returned {type(value).__name__}: it must return one number")
    if (size := getattr(value, "size", 1)) != 1 and not isinstance(value, int | float):
        shape = tuple(value.shape) if hasattr(value, "shape") else size
        raise EngineError(f"metric {name} returned a {type(value).__name__} of shape {shape}: it must return one number")
    number = float(value)
    if math.isnan(number):
        raise EngineError(f"metric {name} is not a number (NaN): check the outputs and the targets that it is given")
    return number


def _bootstrap(function: Callable[[Any, Any], Any], outputs: Any, targets: Any) -> tuple[float | None, float | None]:
    """The 95 % percentile interval of ``function`` over resampled items (Efron 1979); None where the items cannot be resampled."""
    values = sorted(_resamples(function, outputs, targets))
    if not values:
        return None, None
    return values[int(0.025 * len(values))], values[min(int(0.975 * len(values)), len(values) - 1)]


def _resamples(function: Callable[[Any, Any], Any], outputs: Any, targets: Any) -> list[float]:
    """``function`` of items drawn with replacement, by a fixed seed: the same draws for every form of a model. Empty where the items
    cannot be resampled."""
    listed: list[Any] = [part for part in (outputs, targets) if isinstance(part, list)]
    leaves = [
        x for part in (outputs, targets) if not isinstance(part, list) for x in tree_leaves(part) if isinstance(x, Tensor) and x.dim()
    ]
    count = len(next(iter((*leaves, *listed)), ()))
    if count < _LEAST_SAMPLES or any(len(x) != count for x in (*leaves, *listed)):
        return []
    draw = torch.Generator().manual_seed(0)
    values = []
    for _ in range(_RESAMPLES):
        places = torch.randint(count, (count,), generator=draw)
        some, wanted = (_resampled(part, places) for part in (outputs, targets))
        try:
            values.append(float(function(some, wanted)))
        except Exception:
            return []
    return values


def _alike(one: Any, other: Any) -> bool:
    """Whether two batches hold the same tensors."""
    pairs = zip(*([x for x in tree_leaves(raw) if isinstance(x, Tensor)] for raw in (one, other)), strict=False)
    return all(a.shape == b.shape and torch.equal(*(x.nan_to_num() if x.is_floating_point() else x for x in (a, b))) for a, b in pairs)


def _count_of(targets: Any) -> int:
    if isinstance(targets, list):
        return len(targets)
    return next((len(x) for x in tree_leaves(targets) if isinstance(x, Tensor) and x.dim()), 0)


def _blind(outputs: Any, targets: Any) -> Tensor | None:
    """Outputs that are the same for every item and fit ``targets`` best: logits of the classes' frequencies for whole numbers, the mean
    for others; None where the two are no tensors of such forms."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or not outputs.is_floating_point():
        return None
    if not targets.is_floating_point() and outputs.dim() == targets.dim() + 1 and outputs.shape[:1] + outputs.shape[2:] == targets.shape:
        known = targets[(targets >= 0) & (targets < outputs.shape[1])].long()
        if not known.numel():
            return None
        parts = torch.bincount(known.flatten(), minlength=outputs.shape[1]).double() / known.numel()
        logits = parts.clamp(min=1e-9).log().to(outputs.dtype)
        return logits.reshape(1, -1, *[1] * (outputs.dim() - 2)).expand_as(outputs).clone()
    if outputs.shape != targets.shape:
        return None
    mean = targets.double().mean(0, keepdim=True)
    if bool(((targets == 0) | (targets == 1)).all()):
        mean = torch.logit(mean, eps=1e-9)
    return mean.to(outputs.dtype).expand_as(outputs).clone()


def _resampled(part: Any, places: Tensor) -> Any:
    if isinstance(part, list):
        return [part[place] for place in places.tolist()]
    return tree_map(lambda x: x[places] if isinstance(x, Tensor) and x.dim() else x, part)


def _is_object(metric: Any) -> bool:
    return all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset"))


def _name_of(metric: Any) -> str:
    name = getattr(metric, "__name__", type(metric).__name__)
    return "metric" if name == "<lambda>" else str(name)


def _metric(name: str, function: Any, options: Mapping[str, Any]) -> Metric:
    given = options.get("higher_is_better")
    known = getattr(function, "higher_is_better", None)
    higher = given if given is not None else known if known is not None else not _sounds_lower(name)
    return Metric(name, str(options.get("unit") or ""), bool(higher))


def _sounds_lower(name: str) -> bool:
    return any(word in name.lower() for word in _LOWER_IS_BETTER)


def _said_of_direction(metrics: Mapping[str, Any]) -> list[str]:
    lower = [name for name, one in metrics.items() if getattr(one, "higher_is_better", None) is None and _sounds_lower(name)]
    return [f"of {' and '.join(lower)} less is taken to be better, by its name: higher_is_better= says otherwise"] if lower else []
