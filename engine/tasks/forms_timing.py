"""How fast forms of one decoder read and write, in turns on the device that they are on."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice
from engine.lowering.modules.recorded import quickest
from engine.tasks.decode_timing import Lengths, Speed, tokens_per_second


def paces(forms: Mapping[str, Any], context: int, device: str, stop: StopToken) -> Generator[Event, None, dict[str, Speed]]:
    """Of transformers models by name, which read ``context`` tokens at most. A form that a GPU could not write as a recording is told
    of. Raises Cancelled on stop."""
    lengths = Lengths().within(context)
    steps = {name: quickest(form, device, lengths.begin + lengths.new) for name, form in forms.items()}
    vocabulary = int(next(iter(forms.values())).get_input_embeddings().weight.shape[0])
    speeds = yield from tokens_per_second(steps, vocabulary, lengths, stop, device=device)
    for name, step in steps.items():
        if why := getattr(step, "why", None):
            yield Notice(f"{name}: each kernel of a token is launched by itself, {why}")
    return speeds
