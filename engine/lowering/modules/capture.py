"""What enters the blocks of a decoder: its embeddings are run once, its blocks not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError
from engine.events.cancellation import StopToken


class Reached(Exception):
    """Ends a forward pass that has given what was wanted of it."""


@dataclass
class Batch:
    """Hidden states (batch, tokens, width) on the way into a block, and what each block is given beside them.

    ``keep`` is bool (batch, tokens), False at padding, or None where there is none. ``others[i]`` are block i's remaining
    positional and keyword arguments: masks and positions, which the blocks share. ``original`` is what ``hidden`` would be
    were no block quantized, None where nobody asks.
    """

    hidden: Tensor
    keep: Tensor | None
    others: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    original: Tensor | None = None


def run_block(block: nn.Module, batch: Batch, index: int, hidden: Tensor | None = None) -> Tensor:
    """The hidden states that leave ``block``, the decoder's ``index``-th, when ``hidden`` or else the batch's own enter."""
    args, named = batch.others[index]
    output = block(batch.hidden if hidden is None else hidden, *args, **named)
    left = output[0] if isinstance(output, tuple) else output
    assert isinstance(left, Tensor)
    return left


@torch.no_grad()
def capture(
    forward: Callable[[Tensor], object],
    blocks: Sequence[nn.Module],
    texts: Iterable[tuple[Tensor, Tensor | None]],
    stop: StopToken | None = None,
) -> list[Batch]:
    """The batches that enter ``blocks``, from token ids (batch, tokens) and masks of what is kept.

    ``forward`` runs the decoder on ids, without a cache of keys and values; padding belongs on the right, where no token
    that is kept can see it. Raises EngineError where the blocks are not reached.
    """
    batches = []
    for ids, keep in texts:
        if stop is not None:
            stop.check()
        batches.append(_one(forward, blocks, ids, keep))
    if not batches:
        raise EngineError("there is no calibration text: give text that is not empty")
    return batches


def _one(forward: Callable[[Tensor], object], blocks: Sequence[nn.Module], ids: Tensor, keep: Tensor | None) -> Batch:
    batch: Batch | None = None
    beside: tuple[object, ...] | None = None

    def recorder(index: int, original: Callable[..., object]) -> Callable[..., object]:
        def record(*args: Any, **named: Any) -> object:
            nonlocal batch, beside
            hidden = args[0] if args else named.pop("hidden_states")
            if index == 0:
                # A decoder takes from its blocks either a tensor or a tuple that begins with one: the first block tells.
                left = original(*(args or (hidden,)), **named)
                beside = left[1:] if isinstance(left, tuple) else None
                batch = Batch(hidden, keep)
            assert batch is not None
            batch.others.append((tuple(args[1:]), dict(named)))
            if index == len(blocks) - 1:
                raise Reached
            return hidden if beside is None else (hidden, *beside)

        return record

    own = [block.__dict__.get("forward") for block in blocks]
    try:
        for index, block in enumerate(blocks):
            block.forward = recorder(index, block.forward)
        forward(ids)
    except Reached:
        assert batch is not None
        return batch
    finally:
        for block, before in zip(blocks, own, strict=True):
            if before is None:
                del block.forward
            else:
                block.forward = before
    raise EngineError("the model does not run its blocks one after the other: it cannot be quantized block by block")
