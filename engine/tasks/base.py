"""A task: what is predicted, and how that is measured. Nothing outside of ``tasks`` asks what kind of model it is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.recipe.recipe import Recipe
from engine.tasks.metrics import Metric, MetricValue, Workload, batched

if TYPE_CHECKING:
    from engine.tasks.timing import Timing

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Batch:
    """One call of the model: ``args`` and ``kwargs`` are pytrees of tensors, ``targets`` is what the outputs are held against,
    ``count`` the number of items."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    targets: Any = None
    count: int = 1

    def laid_out(self) -> Batch:
        """The same with images channels last, as integer kernels read them."""
        return replace(self, args=tree_map(_channels_last, self.args), kwargs=tree_map(_channels_last, dict(self.kwargs)))

    def items(self, places: Sequence[int]) -> Batch:
        """The items at ``places`` with their targets. What has another first size than ``count`` is the same for all items."""
        index = torch.tensor(places, dtype=torch.long)

        def chosen(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[index.to(value.device)] if value.dim() and len(value) == self.count else value.clone()
            return value

        def of_items(value: Any) -> bool:
            return isinstance(value, list) and len(value) == self.count and one_each(value)

        def taken(value: Any) -> Any:
            return [value[i] for i in places] if of_items(value) else chosen(value)

        targets = self.targets
        if isinstance(targets, list | tuple) and len(targets) == self.count:
            targets = [targets[i] for i in places]
        else:
            targets = tree_map(chosen, targets)
        args, kwargs = (tree_map(taken, given, is_leaf=of_items) for given in (self.args, dict(self.kwargs)))
        return Batch(args, kwargs, targets, len(places))

    def first(self, count: int) -> Batch:
        """The first ``count`` items, or all where there are fewer."""
        return self.items(range(min(count, self.count)))

    def to(self, device: str | torch.device) -> Batch:
        """The same on ``device``."""

        def moved(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        args, kwargs, targets = (tree_map(moved, part) for part in (self.args, dict(self.kwargs), self.targets))
        return replace(self, args=args, kwargs=kwargs, targets=targets)


def one_each(values: Sequence[Any]) -> bool:
    """Whether a list holds items, one tensor or one dict each, as detection models take images: a tensor without a batch. Lists of
    tensors that all have the list's length as their first size are inputs of as many items, unless they are images."""
    if not values or not all(isinstance(value, Tensor | dict) for value in values):
        return False
    tensors = [value for value in values if isinstance(value, Tensor)]
    return len(tensors) < len(values) or all(x.dim() == 3 for x in tensors) or any(x.dim() and len(x) != len(values) for x in tensors)


def _channels_last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value


@dataclass(frozen=True, eq=False)
class ItemAnswer:
    """What a model says of one item, as a person reads it. ``words`` are short (``cat``, ``3 boxes``), ``label`` is what is right;
    ``score`` is how good the answer is, greater is better (1 right and 0 wrong, the IoU of a mask, an error's negative), None where
    nothing is right. ``mask`` are classes by pixel, uint8 (H, W); ``boxes`` are (x1, y1, x2, y2) in pixels, float (N, 4), and
    ``classes`` theirs, int64 (N,)."""

    words: str
    label: str = ""
    score: float | None = None
    mask: Tensor | None = None
    boxes: Tensor | None = None
    classes: Tensor | None = None


Forward = Callable[[Batch], Any]
"""A form of the model: a batch to its raw outputs."""


def forward_of(model: Callable[..., Any]) -> Forward:
    """``model`` as a function of a batch."""
    return lambda batch: model(*batch.args, **batch.kwargs)


class Evaluator(Protocol):
    """Sums over one split.

    An evaluator may also have ``details()``, keys for the report; ``chance()``, the metric of an answer that looks at nothing;
    ``samples()``, how many of its items are independent of each other; and ``difference_error(reference)``, the standard error of
    the paired difference from another evaluator of the same split.
    """

    def update(self, raw: Any, targets: Any) -> None:
        """Take in the raw outputs of one batch."""
        ...

    def compute(self) -> Mapping[str, MetricValue]:
        """The value of each of the task's metrics by name."""
        ...


class Task(ABC):
    """What is measured of a model. ``item`` is a noun for what is counted, ``plural`` what a split
    holds, ``unit`` its short form in rates. The first of
    ``metrics`` decides, the rest is reported. ``workloads`` are timed; the first two stand in tables.

    ``distribution`` says that the last axis of the first output holds the logits of a distribution, which distillation softens;
    with ``divergence`` its distance from fp32's distribution is measured too. ``stepwise`` says that outputs are also made token by
    token over a cache: exported files are then compared and timed (``time_steps``) that way too. ``sensitive`` names
    outputs of which a small change shows in the answers (``box or score output``): the proposal measures the layers that give them, and
    keeps them in 8 bits or in float; empty where an ``argmax`` or a mean hides small changes.
    """

    name: str
    item: str = "item"
    unit: str = "items"
    plural: str = "items"
    metrics: tuple[Metric, ...]
    workloads: tuple[Workload, ...] = (batched(1), batched(64))
    distribution: ClassVar[bool] = False
    divergence: ClassVar[bool] = False
    stepwise: ClassVar[bool] = False
    sensitive: ClassVar[str] = ""
    not_finite: str = "check the weights and the data"
    doubt: str = ""
    """What the data cannot tell whatever is measured on them, as part of a sentence; empty for data as they are met in use."""

    @property
    def noun(self) -> tuple[str, str]:
        """What an evaluator's samples are, as one and as many."""
        return self.item, self.plural

    @staticmethod
    def of(
        train: Any, validation: Any = None, test: Any = None, *, metric: Any = None, loss: Any = None, name: str = "own",
        item: str = "item", unit: str = "", higher_is_better: bool | None = None,
    ) -> Task:  # fmt: skip
        """A task of one's own.

        ``train``, ``validation`` and ``test`` are iterables of batches that can be read again (a list, a ``DataLoader``), or
        functions that yield batches. A batch is ``(inputs, targets)``, a dict with ``targets`` or ``labels`` beside the model's
        keyword arguments, or ``engine.Batch``; inputs are a tensor, a tuple of arguments or a dict of keyword arguments. Splits that are
        not given are split off ``train``, and the report says how.

        ``metric`` is a function ``(outputs, targets) -> number`` over a whole split, an object with ``update``, ``compute`` and
        ``reset`` as torchmetrics has, or a dict of several, of which the first decides. ``unit`` "%" marks a part (0..1).
        Without a metric the model is judged against fp32 alone, by the SQNR of its outputs; a batch may then be a tensor, or a list of
        one, without targets.
        ``loss`` is a function ``(outputs, targets) -> tensor`` of one batch; without it training distils from fp32.
        Raises UsageError for a loader that can be read once alone.

        >>> loader = [(torch.randn(8, 3, 32, 32), torch.randint(10, (8,))) for _ in range(10)]
        >>> task = Task.of(loader, metric=lambda outputs, targets: (outputs.argmax(1) == targets).float().mean(), unit="%")
        """
        from engine.tasks import own

        return own.of(train, validation, test, metric=metric, loss=loss, name=name, item=item, unit=unit, higher_is_better=higher_is_better)

    @property
    def metric(self) -> Metric:
        """The one that decides."""
        return self.metrics[0]

    @abstractmethod
    def batches(
        self, split: Split, *, batch: int, limit: int | None = None, seed: int | None = None, device: str = "cpu"
    ) -> Iterator[Batch]:
        """The split in batches of ``batch`` items, in its stored order, or shuffled by ``seed``; ``limit`` keeps the first items."""

    @abstractmethod
    def count(self, split: Split, limit: int | None = None) -> int:
        """How many items ``batches`` gives."""

    def steps(self, split: Split, *, batch: int, limit: int | None = None) -> int:
        """How many batches ``batches`` gives."""
        return math.ceil(self.count(split, limit) / batch)

    @abstractmethod
    def evaluator(self) -> Evaluator: ...

    @abstractmethod
    def data(self, calibration: int, limit: int | None) -> dict[str, Any]:
        """The report's ``data``: name, and the items of each split."""

    def training_batches(self, *, batch: int, limit: int, seed: int, device: str = "cpu") -> Iterator[Batch]:
        """The training split as an epoch reads it: shuffled by ``seed``, augmented where the task knows how."""
        return self.batches("train", batch=batch, limit=limit, seed=seed, device=device)

    def calibration_batches(self, *, batch: int, limit: int, device: str = "cpu") -> Iterator[Batch]:
        """The items that ranges and rounding are taken from: the first ``limit`` of the training split."""
        return self.batches("train", batch=batch, limit=limit, device=device)

    def calibration_count(self, limit: int) -> int:
        """How many items ``calibration_batches`` gives."""
        return self.count("train", limit)

    @property
    def calibration_name(self) -> str:
        """What ``calibration_batches`` holds, in the plural."""
        return f"training {self.plural}"

    def outputs(self, raw: Any) -> tuple[Tensor, ...]:
        """The tensors of the raw outputs that SQNR, parity and distillation compare."""
        return tuple(value for value in torch.utils._pytree.tree_leaves(raw) if isinstance(value, Tensor) and value.is_floating_point())

    def scored(self, outputs: tuple[Tensor, ...], targets: Any) -> tuple[Tensor, ...]:
        """The part of the outputs that ``targets`` score: all of it, unless the task says otherwise."""
        return outputs

    def held_against(self, reference: Any, targets: Any) -> Any:
        """What the evaluator is given beside the raw outputs of a batch: its ``targets``, unless the task judges against
        ``reference``, fp32's raw outputs of the same batch; None where fp32 is not at hand."""
        return targets

    judged_by_fp32: ClassVar[bool] = False
    """Whether ``held_against`` reads fp32's outputs."""

    def answers(self, outputs: tuple[Tensor, ...]) -> Tensor | None:
        """What the model decides from ``outputs``, integers, of which the agreement with fp32 is counted; None where it decides
        nothing."""
        return None

    def loss(self, raw: Any, targets: Any) -> Tensor | None:
        """The loss that training lowers; None distils from fp32 alone."""
        return None

    def time(self, models: Mapping[str, Any], stop: StopToken, device: str = "cpu") -> Generator[Event, None, dict[str, Timing]]:
        """The latencies of models by name for each workload, timed in turns."""
        from engine.tasks.timing import time_batches

        return (yield from time_batches(self, {name: forward_of(model) for name, model in models.items()}, stop))

    def compared(self, *, batch: int, limit: int | None = None) -> Iterator[Batch]:
        """The test items that exported files are compared on."""
        return self.batches("test", batch=batch, limit=limit)

    def compared_count(self, limit: int | None = None) -> int:
        """How many items ``compared`` gives."""
        return self.count("test", limit)

    def time_steps(self, steps: Mapping[str, Any], stop: StopToken) -> Generator[Event, None, dict[str, Timing]]:
        """The latencies of files by name that are steps over a cache, for each workload; of ``stepwise`` tasks alone."""
        raise NotImplementedError(f"{self.name} makes no outputs step by step")

    def settled(self, recipe: Recipe) -> Recipe:
        """The recipe with what follows from the data where nothing was said."""
        return recipe

    def item_answers(self, raw: Any, batch: Batch) -> Sequence[ItemAnswer]:
        """What the raw outputs say of each item of ``batch``, in order; empty where there is nothing to be shown of single items."""
        return ()

    def picture(self, batch: Batch, index: int) -> Tensor | None:
        """The item at ``index`` of ``batch`` as an image uint8 (3, H, W) for a person to look at; None where it is none. What was
        normalized is stretched to the range of the item's own values."""
        image = next((x for x in batch.args if isinstance(x, Tensor) and x.dim() == 4 and x.shape[1] in (1, 3)), None)
        if image is None:
            return None
        pixels = image[index].detach().float().cpu()
        low, high = pixels.min(), pixels.max()
        spread = ((pixels - low) / (high - low).clamp_min(1e-9) * 255).round().clamp(0, 255).nan_to_num()
        return spread.expand(3, -1, -1).to(torch.uint8)

    def describe(self, models: Mapping[str, Any], stop: StopToken) -> Generator[Event, None, list[dict[str, Any]]]:
        """What a person looks at beside the figures, for the report's ``samples``."""
        yield from ()
        return []
