"""The inputs of a group of linear layers, gathered by running its block up to it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn

from engine.algorithms.gram import Gram
from engine.events.cancellation import StopToken
from engine.lowering.modules.capture import Batch, Reached, run_block
from engine.lowering.modules.folding import Group
from engine.machine import ranks

# One token in so many is held back, and no more than are needed to tell two roundings apart.
HELD, MOST = 8, 2048


@torch.no_grad()
def statistics(
    block: nn.Module, group: Group, batches: list[Batch], index: int, stop: StopToken, original: tuple[nn.Module, nn.Module] | None = None,
    judged: bool = False,
) -> Gram:  # fmt: skip
    """The inputs of ``group`` over all batches; with ``judged`` those of the tokens that ``held_back`` names stand apart. ``original``
    is the block as it was, and the layer in it that is the group's first: the sums are then drifting ones. Raises Cancelled when
    ``stop`` is set."""
    first = group.members[0]
    gram = Gram(first.shape[1], first.held.device, drifting=original is not None)
    for batch, held in zip(batches, _held_here(batches), strict=True):
        stop.check()
        if not batch.counts:
            continue
        before = [] if original is None else _entering(original[0], original[1], batch, index, group.once, original=True)
        for x, x0 in zip_longest(_entering(block, first.module, batch, index, group.once), before):
            if x is None:
                continue
            if not judged or x.shape[:-1].numel() != held.numel():
                # Of an expert's tokens it is not known which they are.
                gram.add(x, batch.keep, x0)
                continue
            keep = torch.ones_like(held) if batch.keep is None else batch.keep
            gram.add(x, keep & ~held, x0)
            gram.hold_back(x, keep & held, x0, batch.turn)
    gram.pool()
    return gram


def held_back(batches: Sequence[Batch]) -> list[Tensor]:
    """Which tokens are left for judging, bool (batch, tokens) for each batch: every eighth sequence, or where there are fewer the
    last eighth of each; ``MOST`` and the rest of a sequence at most."""
    masks = held_back_of([(batch.hidden.shape[0], batch.hidden.shape[1]) for batch in batches])
    return [mask.to(batch.hidden.device) for batch, mask in zip(batches, masks, strict=True)]


def _held_here(batches: Sequence[Batch]) -> list[Tensor]:
    """``held_back`` of this rank's batches among those of all."""
    if not ranks.several():
        return held_back(batches)
    own = {batch.turn: (batch.hidden.shape[0], batch.hidden.shape[1]) for batch in batches if batch.counts}
    shapes = {turn: shape for several in ranks.gathered(own) for turn, shape in several.items()}
    turns = sorted(shapes)
    masks = dict(zip(turns, held_back_of([shapes[turn] for turn in turns]), strict=True))
    return [masks[batch.turn].to(batch.hidden.device) for batch in batches]


def held_back_of(shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """``held_back`` of batches of ``shapes`` (sequences, tokens), on the processor."""
    whole = sum(rows for rows, _ in shapes) >= HELD
    masks, before, taken = [], 0, 0
    for rows, tokens in shapes:
        mask = torch.zeros(rows, tokens, dtype=torch.bool)
        for row in range(rows):
            first = tokens - tokens // HELD if not whole else 0 if (before + row) % HELD == HELD - 1 else tokens
            if taken < MOST:
                mask[row, first:] = True
                taken += tokens - first
        masks.append(mask)
        before += rows
    return masks


def _entering(block: nn.Module, layer: nn.Module, batch: Batch, index: int, once: bool, original: bool = False) -> list[Tensor]:
    """What enters ``layer``, call by call. What the block does after it is not run where it is called ``once``."""
    found: list[Tensor] = []

    def enters(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])
        if once:
            raise Reached

    hook = layer.register_forward_pre_hook(enters)
    try:
        run_block(block, batch, index, original)
    except Reached:
        pass
    finally:
        hook.remove()
    return found
