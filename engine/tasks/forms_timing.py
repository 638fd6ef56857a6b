"""How fast forms of one decoder read and write, in turns on the device that they are on."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import asdict
from typing import Any

from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice
from engine.tasks.decode_timing import Lengths, Speed, Step, tokens_per_second
from engine.tasks.metrics import DECODE, PREFILL
from engine.tasks.recorded_decoding import quickest
from engine.tasks.timing import Latency, Timing

# Prompts that are read where files are timed.
_ROUNDS = 3


def timings(models: Mapping[str, Any], context: int, device: str, stop: StopToken) -> Generator[Event, None, dict[str, Timing]]:
    """Of transformers models by name, which read ``context`` tokens at most. A form that a GPU could not write as a recording is told
    of. Raises Cancelled on stop."""
    lengths = Lengths().within(context)
    steps = {name: quickest(model, device, lengths.begin + lengths.new) for name, model in models.items()}
    vocabulary = int(next(iter(models.values())).get_input_embeddings().weight.shape[0])
    speeds = yield from tokens_per_second(steps, vocabulary, lengths, stop, device=device)
    for name, step in steps.items():
        if why := getattr(step, "why", None):
            yield Notice(f"{name}: each kernel of a token is launched by itself, {why}")
    return {name: timing_of(speed) for name, speed in speeds.items()}


def step_timings(
    steps: Mapping[str, Step], vocabulary: int, lengths: Lengths, stop: StopToken
) -> Generator[Event, None, dict[str, Timing]]:
    """Of steps by name, in turns on the processor. Raises Cancelled on stop."""
    speeds = yield from tokens_per_second(steps, vocabulary, lengths, stop, _ROUNDS, stage="export")
    found = {}
    for name, speed in speeds.items():
        rates = {key: round(getattr(speed, key), 1) for key in ("prefill", "decode")}
        found[name] = Timing(timing_of(speed).latencies, {"latency": asdict(speed), "tokens_per_second": rates})
    return found


def timing_of(speed: Speed) -> Timing:
    """Milliseconds of a token that is written with a cache and of the prompt that is read, and the same as tokens a second."""
    token = Latency(1e3 / speed.decode, speed.token_p95, 1)
    prompt = Latency(1e3 * speed.prompt / speed.prefill, speed.prompt_p95, 1)
    rates = {
        "prefill": round(speed.prefill, 1), "decode": round(speed.decode, 1), "prompt": speed.prompt, "new": speed.new,
        **({"recorded": True} if speed.recorded else {}),
    }  # fmt: skip
    return Timing({DECODE.key: token, PREFILL.key: prompt}, {"tokens_per_second": rates})
