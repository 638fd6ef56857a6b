"""Tokens a second: of a prompt that is read, and of text that is written with a cache of keys and values."""

from __future__ import annotations

import inspect
import math
import statistics
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.machine.device import wait
from engine.tasks.generation import proceed

# Ids (1, T) and the cache that the step before gave, or None, to the logits of the last token and the new cache.
Step = Callable[[Tensor, Any], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Speed:
    """Tokens a second. ``prefill`` is for ``prompt`` tokens read at once, of which the last one's logits alone are computed where the
    step can do so; ``decode`` for ``new`` tokens written one by one after ``begin`` tokens. Both are of the median time; of a
    hundred prompts and tokens 95 took ``prompt_p95`` and ``token_p95`` milliseconds at most. ``recorded`` is whether tokens were written
    by a recorded step."""

    prefill: float
    decode: float
    prompt: int
    new: int
    begin: int
    prompt_p95: float
    token_p95: float
    recorded: bool = False


@dataclass(frozen=True)
class Lengths:
    """Tokens of the prompt that is read, of the text that is continued, of the continuation."""

    prompt: int = 512
    begin: int = 16
    new: int = 32

    def within(self, context: int) -> Lengths:
        """The same, for a model that reads ``context`` tokens at most."""
        begin = max(min(self.begin, context // 2), 1)
        return Lengths(max(min(self.prompt, context), 1), begin, max(min(self.new, context - begin), 1))


def step_of(model: Any) -> Step:
    """A transformers model as a step; one without a cache reads the whole text again for each token."""
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}

    def step(ids: Tensor, past: Any) -> tuple[Tensor, Any]:
        logits, held = proceed(model, ids, past, **last)
        return logits[0, -1], held

    return step


def tokens_per_second(
    steps: Mapping[str, Step],
    vocabulary: int,
    lengths: Lengths,
    stop: StopToken,
    rounds: int = 5,
    stage: str = "speed",
    device: str = "cpu",
) -> Generator[Event, None, dict[str, Speed]]:
    """The models by name, in turns, on ``device`` and on the threads that torch has. Prompts are random ids, the same for all; the
    likeliest token is taken. The prompt's time is the median of ``rounds``; a new token's the median of all, which what else the
    machine does moves little. Raises Cancelled on stop.
    """
    draw = torch.Generator().manual_seed(0)
    prompt, begin = (torch.randint(vocabulary, (1, count), generator=draw).to(device) for count in (lengths.prompt, lengths.begin))
    read: dict[str, list[float]] = {name: [] for name in steps}
    written: dict[str, list[float]] = {name: [] for name in steps}
    # A first round makes primitives and fills caches; it is not counted.
    ticker = Ticker(stage, (rounds + 1) * len(steps), "runs", clock=stop.clock)
    with torch.inference_mode():
        for count in range(rounds + 1):
            for name, step in steps.items():
                stop.check()
                first = _timed(step, prompt, None, stop)[0]
                several = _continue(step, begin, lengths.new if count else min(lengths.new, 4), stop)
                if count:
                    read[name].append(first)
                    written[name].extend(several)
                yield from ticker.advance()
    return {
        name: Speed(
            lengths.prompt / statistics.median(read[name]), 1 / statistics.median(written[name]), lengths.prompt, lengths.new,
            lengths.begin, 1e3 * _p95(read[name]), 1e3 * _p95(written[name]), getattr(step, "recorded", False),
        )
        for name, step in steps.items()
    }  # fmt: skip


def _p95(times: list[float]) -> float:
    """The least of ``times`` that 95 in a hundred do not exceed; of a few, the greatest."""
    return sorted(times)[math.ceil(0.95 * len(times)) - 1]


def _continue(step: Step, begin: Tensor, new: int, stop: StopToken) -> list[float]:
    """Seconds of each of ``new`` tokens after ``begin``."""
    _, logits, past = _timed(step, begin, None, stop)
    found = []
    for _ in range(new):
        stop.check()
        seconds, logits, past = _timed(step, logits.argmax().view(1, 1), past, stop)
        found.append(seconds)
    return found


def _timed(step: Step, ids: Tensor, past: Any, stop: StopToken) -> tuple[float, Tensor, Any]:
    wait(ids.device)
    start = stop.clock()
    logits, past = step(ids, past)
    wait(ids.device)
    return max(stop.clock() - start, 1e-9), logits, past
