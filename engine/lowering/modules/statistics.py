"""The inputs of a group of linear layers, gathered by running its block up to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.algorithms.gram import Gram
from engine.events.cancellation import StopToken
from engine.lowering.modules.capture import Batch, Reached, run_block
from engine.lowering.modules.folding import Group


@torch.no_grad()
def statistics(
    block: nn.Module, group: Group, batches: list[Batch], index: int, stop: StopToken, original: tuple[nn.Module, nn.Module] | None = None
) -> Gram:
    """The inputs of ``group`` over all batches. ``original`` is the block as it was, and the layer in it that is the group's first:
    the sums are then drifting ones. Raises Cancelled when ``stop`` is set."""
    first = group.members[0]
    gram = Gram(first.shape[1], first.held.device, drifting=original is not None)
    for batch in batches:
        stop.check()
        before = None if original is None else _entering(original[0], original[1], batch, index, batch.original)
        gram.add(_entering(block, first.module, batch, index), batch.keep, before)
    return gram


def _entering(block: nn.Module, layer: nn.Module, batch: Batch, index: int, hidden: Tensor | None = None) -> Tensor:
    """What enters ``layer``; what the block does after it is not run."""
    found: list[Tensor] = []

    def enters(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])
        raise Reached

    hook = layer.register_forward_pre_hook(enters)
    try:
        run_block(block, batch, index, hidden)
    except Reached:
        pass
    finally:
        hook.remove()
    return found[0] if found else torch.empty(0)
