"""A quantized decoder against fp32 on the same text: perplexity, and how far the logits have moved."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.tasks.perplexity import Logits, Part, Perplexity, perplexity_of

_ROWS = 256


@dataclass(frozen=True)
class Closeness:
    """Over the scored tokens: mean squared difference of the logits and its SQNR; ``agreement`` is the part of tokens for which
    both forms hold the same one likeliest; ``divergence`` the mean KL divergence from fp32's distribution, nats a token."""

    mse: float
    sqnr_db: float
    agreement: float
    divergence: float

    def error(self) -> dict[str, float]:
        return {"mse": self.mse, "sqnr_db": self.sqnr_db, "agreement": self.agreement, "divergence": self.divergence}


@dataclass(frozen=True)
class Judged:
    """One form and fp32 on one split. ``error`` is the standard error of the mean difference of their losses over the windows,
    nats a token, None for a single window; ``chance`` the perplexity of the scored tokens' own frequencies."""

    fp32: Perplexity
    it: Perplexity
    closeness: Closeness
    error: float | None = None
    chance: float = math.inf

    @property
    def rise(self) -> float:
        """By which part of fp32's the perplexity is higher; negative where it is lower."""
        return self.it.value / self.fp32.value - 1


def against(
    fp32: Logits, it: Logits, parts: Sequence[Part], stride: int | None, stop: StopToken, stage: str = "evaluate"
) -> Generator[Event, None, Judged]:
    """Both forms on ``parts``, which ``parts_of`` cut at ``stride``, or which are sequences where it is None. Raises EngineError for
    logits that are not finite, Cancelled on stop."""
    ticker = Ticker(stage, sum(len(ids) - first for ids, first in parts), "tok", clock=stop.clock)
    sums: dict[str, list[tuple[float, int]]] = {"fp32": [], "it": []}
    device = parts[0][0].device if parts else None
    total = torch.zeros(5, dtype=torch.float64, device=device)  # signal, noise, same answers, divergence, numbers
    with torch.inference_mode():
        for ids, first in parts:
            stop.check()
            before, after = fp32(ids[None])[0, first - 1 : -1], it(ids[None])[0, first - 1 : -1]
            nll = torch.zeros(2, dtype=torch.float64, device=device)
            for a, b, wanted in zip(*(torch.split(x, _ROWS) for x in (before, after, ids[first:])), strict=True):
                loss, moved = _compare(a.float(), b.float(), wanted)
                nll, total = nll + loss, total + moved
                stop.check()
            if not torch.isfinite(nll).all():
                raise EngineError("the model's output on the text is NaN or infinite: check the weights")
            for name, value in zip(sums, nll.tolist(), strict=True):
                sums[name].append((value, len(ids) - first))
            yield from ticker.advance(len(ids) - first)
    context = max(len(ids) for ids, _ in parts)
    count = sum(len(ids) - first for ids, first in parts)
    signal, noise, same, divergence, numbers = total.tolist()
    sqnr = math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)
    close = Closeness(noise / numbers, sqnr, same / count, divergence / count)
    fp32_found, found = (perplexity_of(sums[name], context, stride) for name in ("fp32", "it"))
    return Judged(fp32_found, found, close, _difference_error(sums["fp32"], sums["it"]), _chance(parts))


def _difference_error(fp32: Sequence[tuple[float, int]], it: Sequence[tuple[float, int]]) -> float | None:
    """As ``perplexity_of`` has it of one form, of the windows' differences: both forms read the same text."""
    return perplexity_of([(b - a, count) for (a, count), (b, _) in zip(fp32, it, strict=True)], 1, None).error


def _chance(parts: Sequence[Part]) -> float:
    """The perplexity of a form that knows nothing but how often each token is scored. Frequencies that are taken from the text
    itself flatter it: the bias of the entropy is put right to first order (Miller 1955)."""
    counts = torch.bincount(torch.cat([ids[first:] for ids, first in parts])).double()
    counts = counts[counts > 0]
    total = counts.sum()
    entropy = -(counts / total * (counts / total).log()).sum() + (len(counts) - 1) / (2 * total)
    return math.exp(float(entropy))


def _compare(before: Tensor, after: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (T, vocabulary) of fp32 and of the other form: the summed losses of both, and what ``against`` totals."""
    first, second = before.log_softmax(-1), after.log_softmax(-1)
    losses = [-log.gather(1, wanted[:, None]).double().sum() for log in (first, second)]
    moved = after - before
    found: list[Any] = [
        before.double().square().sum(), moved.double().square().sum(), (before.argmax(-1) == after.argmax(-1)).sum().double(),
        (first.exp() * (first - second)).double().sum(), torch.tensor(float(before.numel()), dtype=torch.float64, device=before.device),
    ]  # fmt: skip
    return torch.stack(losses), torch.stack(found)
