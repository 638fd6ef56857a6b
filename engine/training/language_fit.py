"""The training loop of a language model from scratch: next-token prediction on a stream of tokens."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import EpochFinished, Event, Notice
from engine.events.progress import Every, Ticker
from engine.tasks.perplexity import Logits, stream_perplexity
from engine.training.adamw import AdamW
from engine.training.checkpoint import broken
from engine.training.checkpoint import read as read_checkpoint
from engine.training.checkpoint import write as write_checkpoint
from engine.training.precision import unscaled
from engine.training.running_loss import RunningLoss
from engine.training.schedule import warm_cosine


@dataclass(frozen=True)
class TextSchedule:
    """AdamW; the learning rate rises linearly over ``warmup`` (a part of all steps) and falls as a cosine to a tenth.

    An epoch reads each token once, in windows of ``context`` tokens, ``tokens`` of them a step; the first ``short`` epochs in
    windows of half that length, which are cheaper. ``clip`` bounds the norm of the gradient. ``mixed`` computes in
    bfloat16 where the device is fast at it.
    """

    epochs: int
    context: int
    short: int = 0
    tokens: int = 1024
    lr: float = 2e-3
    weight_decay: float = 0.1
    warmup: float = 0.04
    clip: float = 1.0
    dropout: float = 0.1
    seed: int = 0
    mixed: bool = True

    def precision(self, device: str) -> str:
        """``bfloat16`` where training computes in it, else ``float32``."""
        return unscaled(self.mixed, device)

    def length(self, epoch: int) -> int:
        """Tokens in a window of epoch 1, 2, …"""
        return self.context // 2 if epoch <= self.short else self.context

    def steps(self, epoch: int, stream: int) -> int:
        """Steps of an epoch over ``stream`` tokens; 0 where they do not fill one."""
        length = self.length(epoch)
        return ((stream - 1) // length - 1) // max(self.tokens // length, 1)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0..``steps`` - 1."""
        return warm_cosine(self.lr, self.warmup, step, steps, 0.1)


@dataclass(frozen=True)
class TextFitted:
    """``best`` is the state of the best epoch (counted from 1), ``value`` its perplexity on validation; ``losses`` and
    ``values`` hold each epoch's mean training loss in nats and validation perplexity."""

    best: dict[str, Tensor]
    value: float
    epoch: int
    losses: tuple[float, ...]
    values: tuple[float, ...]


def batches(stream: Tensor, schedule: TextSchedule, epoch: int) -> Iterator[Tensor]:
    """The windows of an epoch as ids (N, T + 1): what is read and, one further, what is told. The cuts lie elsewhere in each epoch."""
    length, rows = schedule.length(epoch), max(schedule.tokens // schedule.length(epoch), 1)
    draw = torch.Generator().manual_seed(schedule.seed * 1000 + epoch)
    offset = int(torch.randint(length, (), generator=draw))
    starts = torch.arange((len(stream) - 1) // length - 1) * length + offset
    order = starts[torch.randperm(len(starts), generator=draw)]
    for some in torch.split(order[: schedule.steps(epoch, len(stream)) * rows], rows):
        yield torch.stack([stream[start : start + length + 1] for start in some.tolist()])


def fit_text(
    model: nn.Module, logits: Logits, train: Tensor, validation: Tensor, schedule: TextSchedule, *, stop: StopToken, stage: str = "train",
    device: str = "cpu", checkpoint: Path | None = None, fingerprint: str = "",
) -> Generator[Event, None, TextFitted]:  # fmt: skip
    """Train ``model`` in place and judge each epoch by its perplexity on ``validation``, in windows that do not overlap.

    ``logits`` runs the model. With ``checkpoint`` each epoch is saved whole; a file of the same ``fingerprint`` is continued. When
    ``stop`` says enough, it ends at the next batch, and the epoch that was begun is dropped, the first one excepted.
    Raises EngineError when the loss is not finite, Cancelled on stop.
    """
    optimizer = AdamW(_groups(model, schedule), schedule.lr, (0.9, 0.95))
    counts = [schedule.steps(epoch, len(train)) for epoch in range(1, schedule.epochs + 1)]
    if not all(counts):
        raise EngineError(f"the text has {len(train):,} tokens to train on, fewer than a step takes: give a longer text")
    losses: list[float] = []
    values: list[float] = []
    best: dict[str, Tensor] = {}
    kept = read_checkpoint(checkpoint, fingerprint)
    if kept:
        try:
            model.load_state_dict(kept["model"])
            optimizer.load_state_dict(kept["optimizer"])
            losses, values, best = kept["losses"], kept["values"], kept["best"]
        except Exception as error:
            raise broken(checkpoint, error) from error
        yield Notice(f"continuing after epoch {len(losses)} of {schedule.epochs}")
    mixed = schedule.precision(device) == "bfloat16"
    due = Every(0.25, stop.clock)
    for epoch in range(len(losses) + 1, schedule.epochs + 1):
        # Dropout draws from the generator of all torch; an epoch is the same whether or not it was resumed.
        torch.manual_seed(schedule.seed * 1000 + epoch)
        done, running = sum(counts[: epoch - 1]), RunningLoss(device)
        last = done + counts[epoch - 1]
        ticker = Ticker(stage, counts[epoch - 1] * schedule.tokens, "tok", clock=stop.clock)
        model.train()
        for ids in batches(train, schedule, epoch):
            stop.check()
            if stop.wants_enough and values:
                yield Notice(f"training was ended after epoch {len(values)} of {schedule.epochs}")
                return _fitted(best, losses, values)
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(done, sum(counts))
            ids = ids.to(device)
            with torch.autocast(device, torch.bfloat16) if mixed else nullcontext():
                out = logits(ids[:, :-1])
            loss = F.cross_entropy(out.float().flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
            optimizer.step()
            running.add(loss)
            done += 1
            if due() or done == last:
                yield running.step(stage, epoch, schedule, done, sum(counts))
            yield from ticker.advance(ids.numel() - len(ids))
        model.eval()
        judged = yield from stream_perplexity(
            logits, validation, schedule.context, schedule.context, stop=stop, stage="judge", device=device
        )
        losses.append(running.total / counts[epoch - 1])
        values.append(judged.value)
        is_best = values[-1] <= min(values)
        if is_best:
            best = {k: v.detach().clone() for k, v in model.state_dict().items()}
        if checkpoint:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "best": best}
            write_checkpoint(checkpoint, {**state, "losses": losses, "values": values, "fingerprint": fingerprint})
        yield EpochFinished(
            epoch, schedule.epochs, losses[-1], values[-1], schedule.rate(done - 1, sum(counts)), is_best, stage, "perplexity"
        )
    return _fitted(best, losses, values)


def _groups(model: nn.Module, schedule: TextSchedule) -> list[dict[str, Any]]:
    """Weight decay on matrices alone: not on biases and normalization."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1]},
    ]


def _fitted(best: dict[str, Tensor], losses: list[float], values: list[float]) -> TextFitted:
    at = min(range(len(values)), key=lambda i: (values[i], -i))
    return TextFitted(best, values[at], at + 1, tuple(losses), tuple(values))
