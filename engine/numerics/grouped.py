"""Weight-only quantization of a matrix: low-bit integers with one scale for each run of inputs in a row.

A group is ``group_size`` consecutive inputs of one output, the last one of a row may hold fewer; group size 0 is the whole
row. Symmetric integers are signed, ``w = scale * q`` with q in -2^(b-1)..2^(b-1)-1; affine ones are unsigned with an
integer zero point, ``w = scale * (q - zero)`` with q and zero in 0..2^b-1. Scales are float16, and are rounded to it before
the integers are chosen: what is stored is what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, UsageError
from engine.numerics.packing import pack, packed_width, unpack

# Below SMALLEST a float16 scale is subnormal with fewer than four significant bits; LARGEST is the largest float16.
SMALLEST, LARGEST = 2.0**-20, 65504.0


@dataclass(frozen=True)
class GroupSpec:
    """Bits in 2..8, inputs in a group (0: the whole row), and whether zero is the middle. Raises UsageError for others."""

    bits: int = 4
    group_size: int = 64
    symmetric: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UsageError(f"{self.bits} bits: weight-only integers have 2 to 8")
        if self.group_size < 0:
            raise UsageError(f"a group of {self.group_size} inputs: give 0 for the whole row, or a positive size")

    def __str__(self) -> str:
        return f"w{self.bits} {f'g{self.group_size}' if self.group_size else 'per-channel'} {'sym' if self.symmetric else 'affine'}"

    def size(self, inputs: int) -> int:
        """Inputs in a full group of a row of ``inputs``."""
        return min(self.group_size, inputs) or inputs

    def groups(self, inputs: int) -> int:
        return -(-inputs // self.size(inputs))

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def high(self) -> int:
        return self.low + (1 << self.bits) - 1

    def storage_bytes(self, out: int, inputs: int) -> int:
        """Exact bytes on disk: packed integers, float16 scales, packed zero points."""
        groups = self.groups(inputs)
        zeros = 0 if self.symmetric else packed_width(groups, self.bits)
        return out * (packed_width(inputs, self.bits) + 2 * groups + zeros)


@dataclass(frozen=True)
class Grid:
    """The representable values of a matrix: ``scale`` float16 (out, groups), ``zero`` uint8 (out, groups) or None where
    symmetric."""

    spec: GroupSpec
    scale: Tensor
    zero: Tensor | None

    def columns(self, inputs: int) -> tuple[Tensor, Tensor]:
        """Step and zero point of every weight, float32 (out, inputs) each."""
        size = self.spec.size(inputs)
        step = self.scale.to(torch.float32).repeat_interleave(size, 1)[:, :inputs]
        if self.zero is None:
            return step, torch.zeros_like(step)
        return step, self.zero.to(torch.float32).repeat_interleave(size, 1)[:, :inputs]


@dataclass(frozen=True)
class GroupedWeight:
    """``values`` (out, in): int8 where the grid is symmetric, uint8 where it is affine."""

    values: Tensor
    grid: Grid

    @property
    def spec(self) -> GroupSpec:
        return self.grid.spec

    @property
    def scale(self) -> Tensor:
        return self.grid.scale

    @property
    def zero(self) -> Tensor | None:
        return self.grid.zero

    def to(self, device: torch.device | str) -> GroupedWeight:
        """The same on ``device``; itself where it is there already."""
        if self.values.device == torch.device(device):
            return self
        zero = None if self.zero is None else self.zero.to(device)
        return GroupedWeight(self.values.to(device), Grid(self.spec, self.scale.to(device), zero))

    @property
    def bytes(self) -> int:
        """Exact bytes on disk."""
        out, inputs = self.values.shape
        return self.spec.storage_bytes(out, inputs)

    def dequantize(self) -> Tensor:
        """float32 (out, in)."""
        step, zero = self.grid.columns(self.values.shape[1])
        return self.values.to(torch.float32).sub_(zero).mul_(step)

    def to_tensors(self) -> dict[str, Tensor]:
        """What a file holds: ``packed`` uint8 (out, bytes a row), ``scale`` float16, and where affine ``zero``, packed too."""
        tensors = {"packed": pack((self.values - self.spec.low).to(torch.uint8), self.spec.bits), "scale": self.scale.contiguous()}
        if self.zero is not None:
            tensors["zero"] = pack(self.zero, self.spec.bits)
        return tensors

    def meta(self) -> dict[str, Any]:
        """What ``from_tensors`` needs beside the tensors; plain JSON."""
        return {"bits": self.spec.bits, "group_size": self.spec.group_size, "symmetric": self.spec.symmetric, "shape": [*self.values.shape]}


def from_tensors(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> GroupedWeight:
    """The inverse of ``to_tensors`` and ``meta``. Raises EngineError where they do not belong together."""
    try:
        spec = GroupSpec(int(meta["bits"]), int(meta["group_size"]), bool(meta["symmetric"]))
        out, inputs = (int(length) for length in meta["shape"])
        packed, scale = tensors["packed"], tensors["scale"]
        zero = None if spec.symmetric else unpack(tensors["zero"], spec.groups(inputs), spec.bits)
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise EngineError(f"a packed weight is incomplete ({error}): the file is damaged; quantize the model again") from error
    wanted = (out, spec.groups(inputs))
    if (
        packed.shape[0] != out
        or tuple(scale.shape) != wanted
        or scale.dtype != torch.float16
        or (zero is not None and zero.shape != wanted)
    ):
        raise EngineError(f"a packed weight of {out} x {inputs} has scales of {tuple(scale.shape)}: the file is damaged; quantize again")
    codes = unpack(packed, inputs, spec.bits)
    values = (codes.to(torch.int16) + spec.low).to(torch.int8) if spec.symmetric else codes
    return GroupedWeight(values, Grid(spec, scale, zero))


def in_groups(weight: Tensor, spec: GroupSpec) -> Tensor:
    """(out, in) to (out, groups, size); the places an incomplete last group lacks are zero."""
    size, groups = spec.size(weight.shape[1]), spec.groups(weight.shape[1])
    return torch.nn.functional.pad(weight, (0, size * groups - weight.shape[1])).reshape(weight.shape[0], groups, size)


def grid_between(low: Tensor, high: Tensor, spec: GroupSpec) -> Grid:
    """The grid that covers ``low``..``high`` (out, groups), widened to hold zero. Raises EngineError where it is not finite."""
    low, high = low.clamp_max(0), high.clamp_min(0)
    if spec.symmetric:
        return Grid(spec, held(torch.maximum(high, -low) / spec.high), None)
    scale = held((high - low) / spec.high)
    zero = (-low / scale.to(torch.float32)).round_().clamp_(0, spec.high).to(torch.uint8)
    return Grid(spec, scale, zero)


def held(scale: Tensor) -> Tensor:
    """Scales as they are stored. One that float16 holds badly, as that of an all-zero group, is raised to ``SMALLEST``."""
    if not torch.isfinite(scale).all():
        raise EngineError("the weights hold NaN or infinity: they cannot be quantized; load other weights")
    if scale.numel() and scale.max() > LARGEST:
        raise EngineError(f"a weight group needs a step of {scale.max():.3g}, beyond float16: use smaller groups or more bits")
    return scale.clamp_min(SMALLEST).to(torch.float16)


def minmax(weight: Tensor, spec: GroupSpec) -> Grid:
    """The grid that covers each group of ``weight`` (out, in) whole."""
    grouped = in_groups(weight.to(torch.float32), spec)
    return grid_between(grouped.amin(2), grouped.amax(2), spec)


def quantize(weight: Tensor, grid: Grid) -> GroupedWeight:
    """Each weight (out, in) to the nearest value of the grid."""
    step, zero = grid.columns(weight.shape[1])
    values = (weight.to(torch.float32) / step).round_().add_(zero).clamp_(grid.spec.low, grid.spec.high)
    return GroupedWeight(values.to(torch.int8 if grid.spec.symmetric else torch.uint8), grid)
