"""Rows of a weight read back from oneDNN's blocked layout, so that an embedding and the head it is tied to share one memory."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

# Outputs in a block, and inputs in a block by fours: the layouts of int8 matrices for instructions that add four products.
_OUTPUTS, _INPUTS = (64, 48, 32, 16), (32, 16, 8, 4, 2, 1)


class BlockedRows:
    """Ids (n,) to int8 (n, in), read from a view (blocks, outputs, blocks, fours, 4) of memory that is not copied."""

    def __init__(self, view: Tensor, shape: tuple[int, int]) -> None:
        self._view, self.shape = view, shape

    def __call__(self, ids: Tensor) -> Tensor:
        block = self._view.shape[1]
        if len(ids) and int(ids.max()) >= self.shape[0]:
            raise IndexError(f"row {int(ids.max())} of {self.shape[0]}")
        return self._view[ids.div(block, rounding_mode="floor"), ids.remainder(block)].reshape(len(ids), -1)[:, : self.shape[1]]


def blocked_rows(space: Tensor, weight: Tensor) -> BlockedRows | None:
    """The way to read the rows of ``weight``, int8 (out, in), from ``space``, the uint8 memory it was reordered to. None where no
    known layout gives exactly these numbers."""
    out, given = weight.shape
    for outputs, fours in product(_OUTPUTS, _INPUTS):
        columns = -(-given // (4 * fours)) * 4 * fours
        rows = -(-out // outputs) * outputs
        if rows * columns > space.numel():
            continue
        view = space[: rows * columns].view(torch.int8).view(rows // outputs, -1, fours, outputs, 4).permute(0, 3, 1, 2, 4)
        found = BlockedRows(view, (out, given))
        # A few rows tell most layouts apart; then every row has to agree.
        some = torch.arange(0, out, max(out // 8, 1))
        if all(torch.equal(found(ids), weight[ids]) for ids in (some, *torch.split(torch.arange(out), 4096))):
            return found
    return None
