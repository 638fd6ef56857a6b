"""A file of a decoder in its own runtime against the model that was measured: logits on text, whole and over a cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.lowering.modules.stepping import Step
from engine.numerics.sqnr import sqnr_db

Logits = Callable[[Tensor], Tensor]
# Tokens that go one by one through the cache, of each window.
SINGLE = 16


@dataclass(frozen=True)
class Parity:
    """Over all tokens: the largest difference of a logit, SQNR in dB, the part of tokens whose likeliest next one is the same (0..1),
    and perplexity: the file's, and by how much it is higher than the measured model's; and the tokens that were compared.
    ``native_sqnr_db`` is of the measured model against fp32 and ``fp32_sqnr_db`` of the file against fp32; None without fp32."""

    max_abs: float
    sqnr_db: float
    agreement: float
    perplexity: float
    perplexity_rise: float
    compared: int
    native_sqnr_db: float | None = None
    fp32_sqnr_db: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(step: Step, reference: Logits, windows: Sequence[Tensor], stop: StopToken, fp32: Logits | None = None) -> tuple[Parity, Parity]:
    """``windows`` of token ids, (T,) each, read whole; and read with a cache, the last ``SINGLE`` tokens of each one by one. ``fp32``
    is read beside them.

    Raises EngineError for logits that are not finite or of another shape, and without a window of two tokens; Cancelled on stop."""
    whole, cached = _Sums(), _Sums()
    for ids in (ids[None] for ids in windows if len(ids) > 1):
        stop.check()
        with torch.inference_mode():
            wanted, exact = reference(ids).float(), None if fp32 is None else fp32(ids).float()
            whole.add(step(ids, None)[0], wanted, ids, exact)
            cached.add(_by_steps(step, ids, stop), wanted, ids, exact)
    return whole.parity(), cached.parity()


def _by_steps(step: Step, ids: Tensor, stop: StopToken) -> Tensor:
    first = max(ids.shape[1] - SINGLE, 1)
    logits, cache = step(ids[:, :first], None)
    found = [logits]
    for place in range(first, ids.shape[1]):
        stop.check()
        logits, cache = step(ids[:, place : place + 1], cache)
        found.append(logits)
    return torch.cat(found, 1)


class _Sums:
    def __init__(self) -> None:
        self.worst = self.signal = self.noise = self.exact = self.native = self.exported = 0.0
        self.tokens = self.same = self.scored = 0
        self.loss = self.wanted_loss = 0.0

    def add(self, got: Tensor, wanted: Tensor, ids: Tensor, exact: Tensor | None = None) -> None:
        """Logits (1, T, vocabulary) of ``ids`` (1, T): of the file, of the measured model and of fp32."""
        if got.shape != wanted.shape:
            raise EngineError(
                f"it gives logits of {tuple(got.shape)} where the model gives {tuple(wanted.shape)}: it is no export of this run"
            )
        if not torch.isfinite(got).all():
            raise EngineError("its logits are NaN or infinite: use another format, or another version of the runtime")
        difference = (got - wanted).double()
        self.worst = max(self.worst, difference.abs().max().item())
        self.signal += wanted.double().square().sum().item()
        self.noise += difference.square().sum().item()
        if exact is not None:
            self.exact += exact.double().square().sum().item()
            self.native += (wanted - exact).double().square().sum().item()
            self.exported += (got - exact).double().square().sum().item()
        self.same += int((got.argmax(-1) == wanted.argmax(-1)).sum())
        self.tokens += ids.numel()
        self.scored += ids.numel() - 1
        self.loss += _loss(got, ids)
        self.wanted_loss += _loss(wanted, ids)

    def parity(self) -> Parity:
        if not self.scored:
            raise EngineError("there is no text of two tokens or more to compare on")
        value, wanted = (math.exp(min(loss / self.scored, 700)) for loss in (self.loss, self.wanted_loss))
        beside = (sqnr_db(self.exact, self.native), sqnr_db(self.exact, self.exported)) if self.exact else (None, None)
        return Parity(self.worst, sqnr_db(self.signal, self.noise), self.same / self.tokens, value, value - wanted, self.tokens, *beside)


def _loss(logits: Tensor, ids: Tensor) -> float:
    return torch.nn.functional.cross_entropy(logits[0, :-1].double(), ids[0, 1:], reduction="sum").item()
