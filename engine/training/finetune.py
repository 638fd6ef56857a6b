"""Fine-tuning of a decoder on low-bit weights: integers, scales, norms and biases learn from text and from the fp32 model."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.data.text.encoded import SequenceData, TextData
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import EpochFinished, Event, Notice
from engine.events.progress import Every, Ticker
from engine.lowering.modules.quantized import duplicate
from engine.lowering.modules.student import State, Student
from engine.numerics.qtensor import QTensor
from engine.training.adamw import AdamW
from engine.training.checkpoint import broken
from engine.training.checkpoint import read as read_checkpoint
from engine.training.checkpoint import write as write_checkpoint
from engine.training.precision import unscaled
from engine.training.running_loss import RunningLoss
from engine.training.schedule import warm_cosine
from engine.training.text_batches import batches, judge, steps


@dataclass(frozen=True)
class TuneSchedule:
    """AdamW without decay; the learning rate rises linearly over ``warmup`` (a part of all steps) and falls as a cosine to zero.

    An epoch reads ``windows`` windows of ``context`` tokens (or as many sequences), about ``tokens`` of them a step. ``lr`` is that
    of norms and biases; ``places`` times it that of the weights, in steps of their grids, 0 where integers are to stay; ``scales``
    times it that of the scales' logarithms. A gradient's momentum lasts about ten steps: ten times ``lr`` times ``places`` is to stay
    well below the half step that moves a weight to another integer, or noise moves many at once. ``distill`` is the weight of the
    fp32 model's answers against the text in the loss. ``judged`` tokens of validation text rank the epochs. ``mixed`` computes in
    bfloat16 where the device is fast at it.
    """

    epochs: int = 4
    context: int = 512
    windows: int = 256
    tokens: int = 1024
    lr: float = 1e-3
    places: float = 30.0
    scales: float = 1.0
    distill: float = 0.5
    warmup: float = 0.1
    clip: float = 1.0
    judged: int | None = 65_536
    seed: int = 0
    mixed: bool = True

    def precision(self, device: str) -> str:
        """``bfloat16`` where training computes in it, else ``float32``."""
        return unscaled(self.mixed, device)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0..``steps`` - 1."""
        return warm_cosine(self.lr, self.warmup, step, steps)


@dataclass(frozen=True)
class Tuned:
    """``weights`` are the integers and scales of the best epoch, ``model`` a copy of the student that holds what they stand for
    beside the norms and biases of that epoch. ``value`` is its perplexity on validation and ``start`` that before training,
    which ``epoch`` 0 means. ``losses`` and ``values`` hold each epoch's mean training loss in nats and validation perplexity."""

    model: Any
    weights: dict[str, QTensor]
    value: float
    epoch: int
    start: float
    losses: tuple[float, ...]
    values: tuple[float, ...]


def finetune(
    teacher: Any, student: Any, weights: Mapping[str, QTensor], data: TextData | SequenceData, schedule: TuneSchedule, *,
    stop: StopToken, stage: str = "qat", device: str = "cpu", checkpoint: Path | None = None, fingerprint: str = "",
) -> Generator[Event, None, Tuned]:  # fmt: skip
    """Train ``weights`` (by module path) and the norms and biases of ``student``; embeddings and matrices without integers stay.

    ``teacher`` is the fp32 model, ``student`` the one that the weights were rounded in, whose norms and biases may differ from the
    teacher's; both are transformers models and stay as they are, the teacher on ``device``. The loss of a token is ``distill`` times
    KL(teacher, student) and the rest the cross-entropy of the text (Hinton et al. 2015, arXiv:1503.02531, at temperature 1; for
    decoders of few bits Liu et al. 2023, arXiv:2305.17888). Activations are float.

    With ``checkpoint`` each epoch is saved whole; a file of the same ``fingerprint`` is continued bit for bit. When ``stop`` says
    enough, it ends at the next batch, and the epoch that was begun is dropped, the first one excepted. Raises EngineError for too
    little text and when the loss is not finite, Cancelled on stop.
    """
    counts = [steps(data, schedule.context, schedule.windows, schedule.tokens, _seed(schedule, e)) for e in range(1, schedule.epochs + 1)]
    if not all(counts):
        raise EngineError(f"the text {data.name} has no window of {schedule.context:,} tokens to train on: give a longer text")
    pupil = Student(duplicate(student).to(device), weights)
    optimizer = AdamW(pupil.groups(schedule.places, schedule.scales), schedule.lr, (0.9, 0.95))
    judged = judge(data, schedule.context, schedule.judged, stop, "judge", device)
    losses: list[float] = []
    values: list[float] = []
    kept = read_checkpoint(checkpoint, fingerprint)
    if kept:
        try:
            pupil.load_state_dict(kept["student"])
            optimizer.load_state_dict(kept["optimizer"])
            losses, values, start, best = kept["losses"], kept["values"], kept["start"], State.read(kept["best"])
        except Exception as error:
            raise broken(checkpoint, error) from error
        yield Notice(f"continuing after epoch {len(losses)} of {schedule.epochs}")
    else:
        best = pupil.state()
        start = (yield from judged(pupil.logits)).value
    mixed = schedule.precision(device) == "bfloat16"
    due = Every(0.25, stop.clock)
    for epoch in range(len(losses) + 1, schedule.epochs + 1):
        done, running = sum(counts[: epoch - 1]), RunningLoss(device)
        last = done + counts[epoch - 1]
        ticker = Ticker(stage, counts[epoch - 1], "steps", clock=stop.clock)
        for ids, keep in batches(data, schedule.context, schedule.windows, schedule.tokens, _seed(schedule, epoch)):
            stop.check()
            if stop.wants_enough and losses:
                yield Notice(f"training was ended after epoch {len(losses)} of {schedule.epochs}")
                return _tuned(pupil, best, start, losses, values)
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(done, sum(counts)) * group["factor"]
            with torch.autocast(device, torch.bfloat16) if mixed else nullcontext():
                loss = _loss(teacher, pupil, ids.to(device), keep.to(device), schedule.distill)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_((p for group in optimizer.param_groups for p in group["params"]), schedule.clip)
            optimizer.step()
            pupil.bound()
            running.add(loss)
            done += 1
            if due() or done == last:
                yield running.step(stage, epoch, schedule, done, sum(counts))
            yield from ticker.advance()
        losses.append(running.total / counts[epoch - 1])
        pupil.settle()
        values.append((yield from judged(pupil.logits)).value)
        is_best = values[-1] <= min(start, *values)
        if is_best:
            best = pupil.state()
        if checkpoint:
            state = {"student": pupil.state_dict(), "optimizer": optimizer.state_dict(), "best": best.write()}
            write_checkpoint(checkpoint, {**state, "losses": losses, "values": values, "start": start, "fingerprint": fingerprint})
        rate = schedule.rate(done - 1, sum(counts))
        yield EpochFinished(epoch, schedule.epochs, losses[-1], values[-1], rate, is_best, stage, "perplexity")
    return _tuned(pupil, best, start, losses, values)


def _loss(teacher: Any, pupil: Student, ids: Tensor, keep: Tensor, distill: float) -> Tensor:
    """Of the mean token, in nats."""
    scored = keep[:, 1:]
    told = pupil.forward(ids)[:, :-1][scored].float().log_softmax(-1)
    loss = (1 - distill) * F.nll_loss(told, ids[:, 1:][scored])
    if not distill:
        return loss
    with torch.no_grad():
        wanted = teacher(input_ids=ids, use_cache=False).logits[:, :-1][scored].float().log_softmax(-1)
    return loss + distill * F.kl_div(told, wanted, reduction="batchmean", log_target=True)


def _tuned(pupil: Student, best: State, start: float, losses: list[float], values: list[float]) -> Tuned:
    """The last of the epochs that are equally good."""
    best.put(pupil.model)
    value = min(start, *values)
    epoch = max((i for i, v in enumerate(values, 1) if v == value), default=0)
    return Tuned(pupil.model.requires_grad_(False), best.weights, value, epoch, start, tuple(losses), tuple(values))


def _seed(schedule: TuneSchedule, epoch: int) -> int:
    return schedule.seed * 1000 + epoch
