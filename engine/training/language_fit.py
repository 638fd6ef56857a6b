"""Training a language model from scratch: next-token prediction on a stream of tokens."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import EngineError
from engine.events.event import Event
from engine.tasks.perplexity import Logits, stream_perplexity
from engine.training.loop import fit
from engine.training.schedule import Schedule
from engine.training.task_model import ModelInTraining
from engine.training.text_batches import perplexity_judge
from engine.training.trainable import Fitted, Part, TrainingContext, cut


@dataclass(frozen=True, kw_only=True)
class TextSchedule(Schedule):
    """AdamW; the learning rate falls to a tenth.

    An epoch reads each token once, in windows of ``context`` tokens, ``tokens`` of them a step; the first ``short`` epochs in
    windows of half that length, which are cheaper. ``dropout`` is for whoever builds the model.
    """

    lr: float = 2e-3
    warmup: float = 0.04
    final: float = 0.1
    optimizer: Literal["sgd", "adamw"] = "adamw"
    weight_decay: float = 0.1
    clip: float | None = 1.0
    mixed: bool = True
    context: int
    short: int = 0
    tokens: int = 1024
    dropout: float = 0.1

    def length(self, epoch: int) -> int:
        """Tokens in a window of epoch 1, 2, …"""
        return self.context // 2 if epoch <= self.short else self.context

    def steps(self, epoch: int, stream: int) -> int:
        """Steps of an epoch over ``stream`` tokens; 0 where they do not fill one."""
        length = self.length(epoch)
        return ((stream - 1) // length - 1) // max(self.tokens // length, 1)


def batches(stream: Tensor, schedule: TextSchedule, epoch: int) -> Iterator[Tensor]:
    """The windows of an epoch as ids (N, T + 1): what is read and, one further, what is told. The cuts lie elsewhere in each epoch."""
    length, rows = schedule.length(epoch), max(schedule.tokens // schedule.length(epoch), 1)
    draw = torch.Generator().manual_seed(schedule.epoch_seed(epoch))
    offset = int(torch.randint(length, (), generator=draw))
    starts = torch.arange((len(stream) - 1) // length - 1) * length + offset
    order = starts[torch.randperm(len(starts), generator=draw)]
    for some in torch.split(order[: schedule.steps(epoch, len(stream)) * rows], rows):
        yield torch.stack([stream[start : start + length + 1] for start in some.tolist()])


class StreamWindows:
    """``stream``, token ids (tokens,), in the windows of ``schedule`` on ``device``."""

    unit = "tok"

    def __init__(self, stream: Tensor, schedule: TextSchedule, device: str = "cpu") -> None:
        self._stream, self._schedule, self._device = stream, schedule, device

    def steps(self, epoch: int) -> int:
        return self._schedule.steps(epoch, len(self._stream))

    def items(self, epoch: int) -> int:
        return self.steps(epoch) * self._schedule.tokens

    def batches(self, epoch: int) -> Iterator[Part[Tensor]]:
        for ids in batches(self._stream, self._schedule, epoch):
            yield Part(ids.to(self._device), ids.numel() - len(ids))

    def share(self, batch: Tensor, index: int, count: int) -> tuple[Tensor, float]:
        places = cut(len(batch), index, count)
        rows = batch[places.start : places.stop]
        return rows, 1 / count if len(rows) == len(batch) else len(rows) / len(batch)


class NextToken(ModelInTraining):
    """``model``, which ``logits`` runs, learns to tell the next token of each place."""

    def __init__(self, model: nn.Module, logits: Logits) -> None:
        super().__init__(model)
        self._logits = logits

    def loss(self, batch: Tensor) -> Tensor:
        out = self._logits(batch[:, :-1])
        return F.cross_entropy(out.float().flatten(0, 1), batch[:, 1:].flatten())


def fit_text(
    model: nn.Module, logits: Logits, train: Tensor, validation: Tensor, schedule: TextSchedule, context: TrainingContext
) -> Generator[Event, None, Fitted]:
    """Train ``model`` in place and judge each epoch by its perplexity on ``validation``, in windows that do not overlap.

    ``logits`` runs the model. Raises EngineError for too little text; for the rest see ``engine.training.loop.fit``.
    """
    data = StreamWindows(train, schedule, context.device)
    if not all(data.steps(epoch) for epoch in range(1, schedule.epochs + 1)):
        raise EngineError(f"the text has {len(train):,} tokens to train on, fewer than a step takes: give a longer text")
    length, stop, device = schedule.context, context.stop, context.device
    judge = perplexity_judge(lambda: stream_perplexity(logits, validation, length, length, stop=stop, stage="judge", device=device))
    return (yield from fit(NextToken(model, logits), data, judge, schedule, context))
