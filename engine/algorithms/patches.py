"""What a convolution or a linear layer multiplies with its weights, as rows: a convolution is a matrix (out, in * kernel) for each of
its groups, and each of its outputs the product with one patch of the input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.algorithms.gram import Gram, HeldBack, add_product
from engine.errors import EngineError

# Patches that the sums take of all calibration items together, at least ``PER_INPUT`` for each weight of an output.
ROWS, PER_INPUT = 2**15, 4
# One item in so many is held back, and no more patches than are needed to tell two roundings apart.
HELD, MOST = 8, 2048


@dataclass(frozen=True)
class Patching:
    """The geometry of a layer: ``kernel``, ``stride``, ``padding`` and ``dilation`` have a number for each spatial dimension, none of
    a linear layer."""

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def windows(self, x: Tensor) -> Tensor:
        """A view (items, channels, positions..., kernel...) of an input (items, channels, sizes...), padded with zeros; of a linear
        layer's (items, ..., features) a view (items, features, positions)."""
        dims = len(self.kernel)
        if not dims:
            whole = x.reshape(len(x), -1, x.shape[-1]) if x.dim() > 1 else x.reshape(1, 1, -1)
            return whole.transpose(1, 2)
        view = x if x.dim() == dims + 2 else x[None]
        if any(self.padding):
            view = F.pad(view, [side for pad in reversed(self.padding) for side in (pad, pad)])
        for place, (kernel, stride, dilation) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            view = view.unfold(2 + place, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        return view

    def patches(self, windows: Tensor, items: Tensor, positions: Tensor) -> Tensor:
        """(groups, n, inputs) of the patches at ``items`` and flat ``positions``, (n,) each, of ``windows``."""
        sizes = windows.shape[2 : 2 + max(len(self.kernel), 1)]
        at: list[Tensor] = []
        for size in reversed(sizes):
            at.insert(0, positions % size)
            positions = positions // size
        index: tuple[Any, ...] = (items, slice(None), *at)
        found = windows[index]
        return found.reshape(len(items), self.groups, -1).transpose(0, 1)


@dataclass
class PatchMoments:
    """Sums over the patches of one layer's inputs, for each of its ``groups`` (see ``Gram``), of ``total`` calibration items.

    Where there are more, about ``rows`` patches are taken, as many of each item, at places drawn with ``seed``: memory is that of
    the sums, ``groups * inputs²`` numbers, and of ``MOST`` patches held back, however many items and positions there are. Every
    ``HELD``-th item is held back for judging; where there are fewer items, every ``HELD``-th patch.
    """

    patching: Patching
    inputs: int
    total: int
    rows: int = 0
    seed: int = 0
    count: int = field(init=False, default=0)
    xx: Tensor = field(init=False)
    sums: Tensor = field(init=False)
    turn: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.rows = self.rows or max(ROWS, PER_INPUT * self.inputs)
        self.xx = torch.zeros(self.patching.groups, self.inputs, self.inputs, dtype=torch.float64)
        self.sums = torch.zeros(self.patching.groups, self.inputs, dtype=torch.float64)
        self._seen, self._generator = 0, torch.Generator().manual_seed(self.seed)
        # The rows that are held back, with the batch that they are of, and how many there are in all.
        self._held: list[tuple[int, Tensor]] = []
        self._held_rows = 0
        # Of each caller: parts for each item, and positions of a part; and the items that went by before that was known.
        self._shapes: dict[str, tuple[float, int]] = {}
        self._passed: list[tuple[int, str]] = []

    @property
    def bytes(self) -> int:
        return bytes_of(self.patching.groups, self.inputs)

    @torch.no_grad()
    def add(self, x: Tensor, items: int, caller: str = "") -> None:
        """The layer's input for ``items`` calibration items, the first dimension being theirs or parts of theirs; ``caller`` tells apart
        the places that a layer is called from. Raises EngineError for NaN or infinity."""
        windows = self.patching.windows(x)
        parts, each = len(windows), windows.shape[2 : 2 + max(len(self.patching.kernel), 1)].numel()
        self._shapes[caller] = (parts / items, each)
        for passed, by in self._passed:
            rate, size = self._shapes.get(by, self._shapes[caller])
            self._drawn(passed, round(rate * passed), size)
        self._passed.clear()
        owners, places, held = self._drawn(items, parts, each)
        rows = self.patching.patches(windows, owners.to(x.device), places.to(x.device)).to(torch.float32)
        if not bool(torch.isfinite(rows).all()):
            raise EngineError("a layer's inputs hold NaN or infinity on the calibration items: the model cannot be calibrated")
        self._sum(rows[:, (~held).to(x.device)])
        if bool(held.any()):
            self._held.append((self.turn, rows[:, held.to(x.device)].cpu()))

    def skip(self, items: int, caller: str = "") -> None:
        """``items`` calibration items that another one of several takes in: places of later ones are drawn as if they had been seen."""
        self._passed.append((items, caller))

    def _drawn(self, items: int, parts: int, each: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of the next ``items``, in ``parts`` of ``each`` positions: the part and the place of each patch that is taken, and whether it is
        held back."""
        taken = min(each, math.ceil(self.rows * items / (self.total * parts)))
        if taken < each:
            places = torch.rand(parts, each, generator=self._generator).topk(taken, 1).indices.flatten()
        else:
            places = torch.arange(each).repeat(parts)
        owners = torch.arange(parts).repeat_interleave(taken)
        item = owners * items // parts + self._seen if self.total >= HELD else torch.arange(len(owners))
        self._seen += items
        held = (item % HELD == HELD - 1) & (self._held_rows < MOST)
        self._held_rows += int(held.sum())
        return owners, places, held

    def take(self, xx: Tensor, sums: Tensor, count: int, held: Sequence[tuple[int, Tensor]]) -> None:
        """Become the sums of all of several, ``held`` being what each of them holds back."""
        self.xx, self.sums, self.count = xx, sums, count
        self._held = sorted(held, key=lambda one: one[0])

    @property
    def held(self) -> Sequence[tuple[int, Tensor]]:
        """What is held back, with the turn of each batch."""
        return self._held

    def _sum(self, rows: Tensor) -> None:
        if self.xx.device != rows.device:
            self.xx, self.sums = self.xx.to(rows.device), self.sums.to(rows.device)
        add_product(self.xx, rows, rows)
        self.sums += rows.sum(1)
        self.count += rows.shape[1]

    def grams(self) -> Sequence[Gram]:
        """The sums of each group, on the processor."""
        held = torch.cat([rows for _, rows in self._held], 1) if self._held else None
        return [
            Gram.of(xx.to(torch.float32), total, self.count, None if held is None else HeldBack(held[group]))
            for group, (xx, total) in enumerate(zip(self.xx.cpu(), self.sums.cpu(), strict=True))
        ]

    def state_dict(self) -> dict[str, Any]:
        """All that was gathered, as plain values and tensors."""
        return {"xx": self.xx.cpu(), "sums": self.sums.cpu(), "count": self.count, "seen": self._seen, "held": list(self._held)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError or ValueError for what is no such state of a layer of this form."""
        if any(state[name].shape != own.shape or state[name].dtype != own.dtype for name, own in (("xx", self.xx), ("sums", self.sums))):
            raise ValueError("moments of another layer, or of another type")
        self.xx, self.sums, self.count, self._seen = state["xx"], state["sums"], state["count"], state["seen"]
        self._held = list(state["held"])


def bytes_of(groups: int, inputs: int) -> int:
    """Memory of one layer's ``PatchMoments``."""
    return groups * inputs * (8 * (inputs + 1) + 4 * MOST)
