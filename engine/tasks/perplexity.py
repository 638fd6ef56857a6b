"""Perplexity by a stated protocol: windows over a stream of tokens, or sequences one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from engine.data.text.batching import filled
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.machine import ranks

Logits = Callable[[Tensor], Tensor]
# Ids (tokens,), and the first place of them that is scored.
Part = tuple[Tensor, int]
STRIDE = 512
# Numbers in the logits of a batch: 2**27 are half a gibibyte in float32.
_ROOM = 2**27
_ROWS = 512


@dataclass(frozen=True)
class Perplexity:
    """``value`` is exp(``nll``), ``nll`` the mean negative log-likelihood in nats over the ``tokens`` that were scored.

    ``error`` is the standard error of ``nll`` over the ``windows``, ``low`` to ``high`` the 95 % interval of the
    perplexity that follows from it; None for a single window. ``context`` counts the tokens of the longest window; ``stride`` is
    None for sequences.
    """

    value: float
    nll: float
    tokens: int
    windows: int
    context: int
    stride: int | None
    protocol: str
    error: float | None = None
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Window:
    """Tokens ``begin`` to ``end`` of a stream are read; those from ``first`` on are scored."""

    begin: int
    first: int
    end: int


def windows(tokens: int, context: int, stride: int) -> tuple[Window, ...]:
    """The windows of the Hugging Face protocol: the next one begins ``stride`` tokens later and scores what the one before
    did not. With ``stride`` equal to ``context`` none overlap, and the first token of each has nothing to be told from."""
    found: list[Window] = []
    done = 0
    for begin in range(0, tokens, stride):
        end = min(begin + context, tokens)
        first = max(done, begin + 1)
        if first < end:
            found.append(Window(begin, first, end))
        done = end
        if end == tokens:
            break
    return tuple(found)


def stream_perplexity(
    logits: Logits, stream: Tensor, context: int, stride: int | None = None, *, stop: StopToken, stage: str = "perplexity",
    device: str = "cpu", limit: int | None = None,
) -> Generator[Event, None, Perplexity]:  # fmt: skip
    """The perplexity of ``stream``, a 1-D tensor of token ids. ``logits`` maps ids (N, T) to logits (N, T, vocabulary), which
    are read as float32 and summed in float64.

    ``stride`` is 512 by default and never over ``context``; ``limit`` ends the stream after so many tokens. Raises
    EngineError for fewer tokens than the context and for logits that are not finite, Cancelled on stop.
    """
    return (yield from _score(logits, parts_of(stream[:limit], context, stride), stride or STRIDE, stop, stage, device))


def parts_of(stream: Tensor, context: int, stride: int | None = None) -> list[Part]:
    """The windows of a stream, ``stride`` as ``stream_perplexity`` takes it. Raises EngineError for fewer tokens than the context."""
    if len(stream) < context:
        raise EngineError(f"the text has {len(stream):,} tokens, fewer than the context of {context:,}: give a longer text")
    return [(stream[w.begin : w.end], w.first - w.begin) for w in windows(len(stream), context, min(stride or STRIDE, context))]


def sequence_perplexity(
    logits: Logits, sequences: Sequence[Tensor], *, stop: StopToken, stage: str = "perplexity", device: str = "cpu"
) -> Generator[Event, None, Perplexity]:
    """The perplexity of sequences, 1-D tensors of token ids, each told from its own beginning; all tokens but the first of each
    are scored. Shorter ones of a batch are filled up on the right, which a causal model does not see. Raises as
    ``stream_perplexity`` does."""
    parts = [(ids, 1) for ids in sequences if len(ids) > 1]
    if not parts:
        raise EngineError("no sequence has two tokens or more: there is nothing to score")
    # Of like length, so that little is filled up.
    parts.sort(key=lambda part: len(part[0]))
    return (yield from _score(logits, parts, None, stop, stage, device))


def _score(
    logits: Logits, parts: Sequence[Part], stride: int | None, stop: StopToken, stage: str, device: str
) -> Generator[Event, None, Perplexity]:
    """Each part is read whole and scored from the given place on."""
    context = max(len(ids) for ids, _ in parts)
    ticker = Ticker(stage, sum(len(ids) - first for ids, first in parts), "tok", clock=stop.clock)
    # By the place of the first part of each batch. All ranks read the first one, which tells how many go together.
    found: dict[int, list[tuple[float, int]]] = {}
    batch, at, turn = 1, 0, 0
    with torch.inference_mode():
        while at < len(parts):
            stop.check()
            several = parts[at : at + batch]
            turn += 1
            if turn > 1 and not ranks.mine(turn - 1):
                at += len(several)
                yield from ticker.advance(sum(len(ids) - first for ids, first in several))
                continue
            ids = filled([ids for ids, _ in several])[0].to(device)
            out = logits(ids)
            sums = [
                (_nll(out[row, first - 1 : len(part) - 1], ids[row, first : len(part)]), len(part) - first)
                for row, (part, first) in enumerate(several)
            ]
            if not all(math.isfinite(nll) for nll, _ in sums):
                raise EngineError("the model's output on the text is NaN or infinite: check the weights")
            found[at] = sums
            at += len(several)
            batch = max(min(_ROOM // (context * out.shape[-1]), 8), 1)
            yield from ticker.advance(sum(count for _, count in sums))
    whole = {at: sums for rank in ranks.gathered(found) for at, sums in rank.items()}
    return perplexity_of([one for at in sorted(whole) for one in whole[at]], context, stride)


def _nll(logits: Tensor, targets: Tensor) -> float:
    """The summed negative log-likelihood of ``targets`` (T,) under ``logits`` (T, vocabulary)."""
    total = 0.0
    for some, wanted in zip(torch.split(logits, _ROWS), torch.split(targets, _ROWS), strict=True):
        total += torch.nn.functional.cross_entropy(some.float(), wanted, reduction="none").double().sum().item()
    return total


def perplexity_of(sums: Sequence[tuple[float, int]], context: int, stride: int | None) -> Perplexity:
    """From the summed negative log-likelihood, in nats, and the number of tokens of each window. ``stride`` is what was asked, None
    for sequences: windows begin ``context`` tokens after each other at most."""
    stride = None if stride is None else min(stride, context)
    protocol = "sequences" if stride is None else "non-overlapping windows" if stride == context else "sliding window"
    tokens, count = sum(n for _, n in sums), len(sums)
    mean = sum(nll for nll, _ in sums) / tokens
    if count < 2:
        return Perplexity(_exp(mean), mean, tokens, count, context, stride, protocol)
    # Of a ratio of sums, windows taken as independent.
    error = math.sqrt(count / (count - 1) * sum((nll - mean * n) ** 2 for nll, n in sums)) / tokens
    return Perplexity(
        _exp(mean), mean, tokens, count, context, stride, protocol, error, _exp(mean - 1.96 * error), _exp(mean + 1.96 * error)
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
