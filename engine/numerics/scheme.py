"""What a weight is asked to become: a number format, and how many inputs share a scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import UsageError
from engine.numerics.formats import FORMATS, NumberFormat, integer
from engine.recipe.spec import BLOCK, WeightSpec


@dataclass(frozen=True)
class WeightScheme:
    """A group is ``group_size`` consecutive inputs of one output, the last one of a row may hold fewer; 0 is the whole row. ``rows``
    consecutive outputs share a scale in each group, 0 being all of them: tensors of scales have a row for each output all the same."""

    format: NumberFormat
    group_size: int = 0
    rows: int = 1

    def __post_init__(self) -> None:
        if self.group_size < 0:
            raise UsageError(f"a group of {self.group_size} inputs: give 0 for the whole row, or a positive size")

    def __str__(self) -> str:
        groups = f"g{self.group_size}" if self.group_size else "per-channel"
        if self.rows != 1:
            groups = f"blocks of {self.rows}x{self.group_size}" if self.rows else "per-tensor"
        if self.format.levels:
            return self.format.name if self.format.block else f"{self.format.name} {groups}"
        return f"w{self.bits} {groups} {'sym' if self.symmetric else 'affine'}"

    @property
    def bits(self) -> int:
        return self.format.bits

    @property
    def symmetric(self) -> bool:
        """Whether there are no zero points."""
        return not self.format.moved

    @property
    def low(self) -> float:
        return self.format.low

    @property
    def high(self) -> float:
        return self.format.high

    def size(self, inputs: int) -> int:
        """Inputs in a full group of a row of ``inputs``."""
        return min(self.group_size, inputs) or inputs

    def groups(self, inputs: int) -> int:
        return -(-inputs // self.size(inputs))

    def scales(self, inputs: int) -> int:
        """Scales of a row in floating point: one for each group, or for each block of GGUF's formats."""
        layout = self.format.layout
        return self.groups(inputs) if layout is None else -(-inputs // layout.weights)

    @property
    def groups_of_scale(self) -> int:
        """Groups that share a scale in floating point."""
        layout = self.format.layout
        return 1 if layout is None else layout.weights // self.format.block

    def scale_rows(self, out: int) -> int:
        """Rows of scales as they are stored, for ``out`` outputs."""
        return -(-out // self.rows) if self.rows else 1

    def shared(self, step: Tensor) -> Tensor:
        """``step`` (out, groups) with the largest of the outputs that share a scale in the place of each."""
        if self.rows == 1 or not len(step):
            return step
        rows = self.rows or len(step)
        filled = torch.nn.functional.pad(step, (0, 0, 0, -len(step) % rows))
        largest = filled.reshape(-1, rows, step.shape[1]).amax(1)
        return largest.repeat_interleave(rows, 0)[: len(step)]

    def spread_rows(self, stored: Tensor, out: int) -> Tensor:
        """Scales (``scale_rows``, groups) as they are stored as (out, groups)."""
        return stored if self.rows == 1 else stored.repeat_interleave(self.rows or out, 0)[:out]

    def storage_bytes(self, out: int, inputs: int) -> int:
        """Exact bytes on disk: packed codes, scales, packed zero points; of GGUF's formats whole blocks."""
        if layout := self.format.layout:
            return out * -(-inputs // layout.weights) * layout.size
        groups = self.groups(inputs)
        zeros = self.format.packed_width(groups) if self.format.affine else 0
        whole = 4 if self.format.two_level else 0
        return out * (self.format.packed_width(inputs) + zeros) + self.format.scale.itemsize * groups * self.scale_rows(out) + whole


def int_scheme(bits: int = 4, group_size: int = 64, symmetric: bool = False) -> WeightScheme:
    """Integers of 2 to 8 bits, else UsageError."""
    return WeightScheme(integer(bits, symmetric), group_size)


def scheme_of(spec: WeightSpec) -> WeightScheme:
    """What a layer's ``spec`` asks of a matrix, which has a scale for each row at least."""
    size = {"per-group": spec.group_size, "per-block": BLOCK}.get(spec.granularity, 0)
    rows = {"per-block": BLOCK, "per-tensor": 0}.get(spec.granularity, 1)
    return WeightScheme(FORMATS[spec.format], size, rows) if spec.format else int_scheme(spec.bits, size, spec.symmetric)


def in_groups(weight: Tensor, scheme: WeightScheme) -> Tensor:
    """(out, in) to (out, groups, size); the places an incomplete last group lacks are zero."""
    size, groups = scheme.size(weight.shape[1]), scheme.groups(weight.shape[1])
    return torch.nn.functional.pad(weight, (0, size * groups - weight.shape[1])).reshape(weight.shape[0], groups, size)
