"""The parts of a training: what is trained, on which batches, how an epoch is judged, and where it runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

from engine.events.cancellation import StopToken
from engine.events.event import Event

B = TypeVar("B")
B_in = TypeVar("B_in", contravariant=True)


class Trainable(Protocol[B_in]):
    """What is trained: a model, or what stands in the place of its weights."""

    def loss(self, batch: B_in) -> Tensor:
        """The mean loss of ``batch``, a scalar that gradients flow from."""
        ...

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Dictionaries with ``params`` and, where they differ from the usual, ``weight_decay`` (0) and ``factor`` (1), which
        scales the learning rate."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]:
        """The tensors whose gradients' norm is bounded."""
        ...

    def before_epoch(self, epoch: int) -> None:
        """Make ready to train epoch 1, 2, …"""
        ...

    def after_step(self) -> None:
        """Put right what a step of the optimizer has left outside of its bounds."""
        ...

    def after_epoch(self) -> None:
        """Make ready to be judged."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that training changes: tensors and plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError or RuntimeError for the state of something else."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """A copy of what the best epoch is kept for: tensors and plain values."""
        ...


@dataclass(frozen=True)
class Part(Generic[B]):
    """The batch of one step. ``items`` is what progress counts, ``weight`` what the batch weighs in the loss of its epoch."""

    batch: B
    items: int
    weight: int = 1


class EpochData(Protocol[B]):
    """What is read in each epoch 1, 2, …; the same for the same epoch. ``unit`` is the short form of its items."""

    @property
    def unit(self) -> str: ...

    def steps(self, epoch: int) -> int:
        """How many batches there are."""
        ...

    def items(self, epoch: int) -> int:
        """How many items they have."""
        ...

    def batches(self, epoch: int) -> Iterator[Part[B]]: ...

    def share(self, batch: B, index: int, count: int) -> tuple[B, float]:
        """The part of a batch that rank ``index`` of ``count`` takes its gradient from, and what it weighs in the loss of the whole."""
        ...


def cut(items: int, index: int, count: int) -> range:
    """The places of ``items`` that rank ``index`` of ``count`` has; all of them, on each rank, where there are too few for all."""
    return range(items) if items < count else range(index * items // count, (index + 1) * items // count)


@dataclass(frozen=True)
class Judged:
    """A validation result: the metric to show, and the score that ranks epochs, compared in order."""

    value: float
    score: tuple[float, ...]


@dataclass(frozen=True)
class Judge:
    """How an epoch is judged: ``measure`` evaluates on the validation split, ``metric`` names the value. With ``before`` the model
    as it comes is judged too, and kept where no epoch is as good."""

    measure: Callable[[], Generator[Event, None, Judged]]
    metric: str
    before: bool = False


@dataclass(frozen=True)
class TrainingContext:
    """Where a training runs. ``stage`` names it in events. With ``checkpoint`` it is saved there, and a file of the same
    ``fingerprint`` is continued."""

    stop: StopToken
    stage: str = "train"
    device: str = "cpu"
    checkpoint: Path | None = None
    fingerprint: str = ""


@dataclass(frozen=True)
class Fitted:
    """``best`` is the snapshot of the best epoch (counted from 1; 0 is the model as it came), ``value`` its validation metric.
    ``losses`` and ``values`` hold each epoch's mean training loss and validation metric, fewer than were asked for when it
    was enough; ``start`` is the metric before training, None where that was not judged."""

    best: dict[str, Any]
    value: float
    epoch: int
    losses: tuple[float, ...]
    values: tuple[float, ...]
    start: float | None = None
