"""A quantized tensor: codes, scales and zero points, whichever lowering uses it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, UsageError
from engine.numerics.formats import FORMATS, NumberFormat, integer
from engine.numerics.gguf_blocks import from_blocks, to_blocks
from engine.numerics.packing import pack_nibbles, pack_signed, packed_width, unpack_nibbles, unpack_signed
from engine.numerics.scheme import WeightScheme


@dataclass(frozen=True)
class QTensor:
    """``value = (decode(code) - zero) * scale``, each group of inputs with a scale and a zero point of its own.

    Invariants: ``codes`` has the dtype ``format.storage`` and the shape (out, ...) of the weight. A row is its inputs in order,
    flattened, in groups of ``group_size``, the last of which may hold fewer; 0 is the whole row. ``scale`` is floating point
    (out, groups), and ``zero`` uint8 (out, groups) where the format is affine, else None. Where scales are stored in E4M3
    ``tensor_scale``, float32 (), multiplies them all. So many outputs as ``rows_of_scale`` have equal scales, which are stored once.

    Scales of two levels: ``multiplier`` is uint8 (out, groups) and ``scale`` (out, 1), so that a group's step is their product.
    ``code * multiplier`` fits in int8, and grouped weights run on the kernels of one scale a channel (QServe, Lin et al. 2024,
    arXiv:2405.04532, section 4.1).

    GGUF's formats (those with a ``layout``) have a float16 ``scale`` for each of their blocks, (out, blocks). Where a block has several
    groups ``multiplier``, int8 (out, groups), times it is a group's step. ``offset``, float16 (out, blocks), times
    ``offset_multiplier``, int8 (out, groups), where there is one, is subtracted: ``value = step * code - offset``. All products are exact
    in float32, and the difference is rounded once, so that every program that reads the blocks finds the same numbers.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    format: NumberFormat
    group_size: int = 0
    multiplier: Tensor | None = None
    tensor_scale: Tensor | None = None
    offset: Tensor | None = None
    offset_multiplier: Tensor | None = None
    rows_of_scale: int = 1

    @property
    def scheme(self) -> WeightScheme:
        return WeightScheme(self.format, self.group_size, self.rows_of_scale)

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    @property
    def bits(self) -> int:
        return self.format.bits

    @property
    def channel_scale(self) -> Tensor:
        """float32 (out,). Raises ValueError where a channel has more than one."""
        if self.scale.shape[1] != 1:
            raise ValueError(f"each channel has {self.scale.shape[1]} scales")
        return self.scale[:, 0].to(torch.float32)

    def integers(self) -> Tensor:
        """The weights in units of ``scale``: int8, or int16 where unsigned codes of 8 bits are moved by their zero points.

        Of weights with a scale a channel, of one level or two, this is what a kernel takes."""
        if self.multiplier is None and self.zero is None:
            return self.codes
        numbers = self.codes.flatten(1).to(torch.int16)
        if self.zero is not None:
            numbers = numbers - self._spread(self.zero.to(torch.int16))
        if self.multiplier is not None:
            numbers = numbers * self._spread(self.multiplier.to(torch.int16))
        wide = self.format.affine and self.bits == 8
        return (numbers if wide else numbers.to(torch.int8)).reshape(self.shape)

    def dequantize(self) -> Tensor:
        """float32 of the weight's shape."""
        values = self.format.decode(self.codes).flatten(1)
        if self.format.layout is not None:
            values = values.mul_(self._spread(self._by_group(self.scale, self.multiplier)))
            if self.offset is not None:
                values = values.sub_(self._spread(self._by_group(self.offset, self.offset_multiplier)))
            return values.reshape(self.shape)
        if self.zero is not None:
            values = values.sub_(self._spread(self.zero.to(torch.float32)))
        if self.multiplier is not None:
            values = values.mul_(self._spread(self.multiplier.to(torch.float32)))
        scale = self.scale.to(torch.float32)
        scale = scale if self.tensor_scale is None else scale * self.tensor_scale
        return values.mul_(self._spread(scale)).reshape(self.shape)

    def _by_group(self, by_block: Tensor, multiplier: Tensor | None) -> Tensor:
        return of_groups(self.scheme, by_block, multiplier)

    def rows(self, at: Tensor, codes: Tensor) -> QTensor:
        """The rows ``at`` (n,), whose codes (n, inputs) are given."""
        parts = {name: getattr(self, name) for name in ("scale", "zero", "multiplier", "offset", "offset_multiplier")}
        return replace(self, codes=codes, **{name: part[at] for name, part in parts.items() if part is not None})

    def _spread(self, by_group: Tensor) -> Tensor:
        """(out, groups) to what can be combined with (out, inputs)."""
        if by_group.shape[1] == 1:
            return by_group
        inputs = math.prod(self.shape[1:])
        return by_group.repeat_interleave(self.scheme.size(inputs), 1)[:, :inputs]

    def to(self, device: torch.device | str) -> QTensor:
        """The same on ``device``; itself where it is there already."""
        if self.codes.device == torch.device(device):
            return self
        names = ("codes", "scale", "zero", "multiplier", "tensor_scale", "offset", "offset_multiplier")
        parts = {name: getattr(self, name) for name in names}
        return replace(self, **{name: part.to(device) for name, part in parts.items() if part is not None})

    @property
    def bytes(self) -> int:
        """Exact bytes on disk, those of ``to_tensors``."""
        out, inputs = self.shape[0], math.prod(self.shape[1:])
        if self._packed:
            return self.scheme.storage_bytes(out, inputs)
        return packed_width(out * inputs, self.bits) + 4 * out + (0 if self.multiplier is None else self.multiplier.numel())

    @property
    def _packed(self) -> bool:
        """Whether scales are stored as the format has them; those of integer kernels are float32."""
        return self.scale.dtype == self.format.scale

    def to_tensors(self) -> dict[str, Tensor]:
        """What a file holds.

        Of GGUF's formats their blocks, ``packed``. With the format's own scales: ``packed`` uint8 (out, bytes a row), ``scale``, where
        affine ``zero``, packed too, and ``tensor_scale`` where there is one. With float32 scales, of a channel each: ``values`` of 4 bits
        two to a byte, of 8 one, or ``packed_values`` of other widths in their bits, uint8 (bytes,); ``scale`` (out,) and where there is
        one ``multiplier``.
        """
        if self.format.layout is not None:
            parts = (self.scale, self.offset, self.multiplier, self.offset_multiplier)
            return {"packed": to_blocks(self.format, self.codes, *parts)}
        if self._packed:
            step = self.scheme.rows or len(self.scale)
            tensors = {"packed": self.format.pack(self.codes), "scale": self.scale[::step].contiguous()}
            tensors |= {} if self.zero is None else {"zero": self.format.pack(self.zero)}
            return tensors | ({} if self.tensor_scale is None else {"tensor_scale": self.tensor_scale})
        tensors = {**self._stored_codes(), "scale": self.channel_scale.contiguous()}
        return tensors if self.multiplier is None else {**tensors, "multiplier": self.multiplier.contiguous()}

    def _stored_codes(self) -> dict[str, Tensor]:
        if self.bits == 8:
            return {"values": self.codes.contiguous()}
        return {"values": pack_nibbles(self.codes)} if self.bits == 4 else {"packed_values": pack_signed(self.codes, self.bits)}

    def meta(self) -> dict[str, Any]:
        """What ``from_tensors`` needs beside the tensors; plain JSON."""
        about = {"bits": self.bits, "shape": [*self.shape], "group_size": self.group_size}
        if not self._packed:
            return about
        about = {"bits": self.bits, "group_size": self.group_size, "symmetric": not self.format.affine, "shape": [*self.shape]}
        # Integers are what a file without a format's name has.
        if self.format == integer(self.bits, not self.format.affine):
            return about
        return {**about, "format": self.format.name, **({} if self.rows_of_scale == 1 else {"rows_of_scale": self.rows_of_scale})}


def per_channel(scale: Tensor, dims: int) -> Tensor:
    """A (out,) tensor reshaped to multiply weights of ``dims`` dimensions."""
    return scale.reshape(-1, *[1] * (dims - 1))


def from_tensors(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> QTensor:
    """The inverse of ``to_tensors`` and ``meta``. Raises EngineError where they do not belong together."""
    try:
        return _by_channel(tensors, meta) if {"values", "packed_values"} & tensors.keys() else _packed(tensors, meta)
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError, UsageError) as error:
        raise EngineError(f"a packed weight is incomplete ({error}): the file is damaged; quantize the model again") from error


def scheme_of_meta(meta: Mapping[str, Any]) -> WeightScheme:
    """The scheme of a weight whose scales are stored as its format has them, by its ``meta``. Raises KeyError or ValueError."""
    form = FORMATS[str(meta["format"])] if "format" in meta else integer(int(meta["bits"]), bool(meta["symmetric"]))
    return WeightScheme(form, int(meta["group_size"]), int(meta.get("rows_of_scale", 1)))


def _packed(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> QTensor:
    scheme = scheme_of_meta(meta)
    form = scheme.format
    out, inputs = (int(length) for length in meta["shape"])
    if form.layout is not None:
        return of_blocks(form, tensors["packed"], out, inputs)
    if scheme.rows < 0:
        raise ValueError(f"{scheme.rows} outputs share a scale")
    packed, scale, wanted = tensors["packed"], tensors["scale"], (scheme.scale_rows(out), scheme.groups(inputs))
    zero = form.unpack(tensors["zero"], wanted[1]) if form.affine else None
    whole = tensors["tensor_scale"] if form.two_level else None
    if (
        packed.shape[0] != out
        or tuple(scale.shape) != wanted
        or scale.dtype != form.scale
        or (zero is not None and zero.shape != (out, wanted[1]))
        or (whole is not None and (whole.dtype != torch.float32 or whole.shape != () or not torch.isfinite(whole)))
    ):
        raise EngineError(f"a packed weight of {out} x {inputs} has scales of {tuple(scale.shape)}: the file is damaged; quantize again")
    scale = scheme.spread_rows(scale, out)
    return QTensor(form.unpack(packed, inputs), scale, zero, form, scheme.group_size, tensor_scale=whole, rows_of_scale=scheme.rows)


def of_blocks(form: NumberFormat, blocks: Tensor, out: int, inputs: int) -> QTensor:
    """A matrix (out, inputs) of one of GGUF's formats, from its bytes (out, bytes a row). Raises EngineError for bytes of another
    size and for scales that are not finite."""
    if len(blocks) != out:
        raise EngineError(f"blocks of {len(blocks)} rows instead of {out}: the file is damaged; quantize the model again")
    codes, scale, offset, multiplier, offset_multiplier = from_blocks(form, blocks, inputs)
    if not (torch.isfinite(scale).all() and (offset is None or torch.isfinite(offset).all())):
        raise EngineError("scales of a packed weight are not finite: the file is damaged; quantize the model again")
    return QTensor(codes, scale, None, form, form.block, multiplier, None, offset, offset_multiplier)


def of_groups(scheme: WeightScheme, by_block: Tensor, multiplier: Tensor | None) -> Tensor:
    """float32 (out, groups) of float16 numbers (out, blocks) of GGUF's formats, and of each group's multiplier where there is one."""
    values = by_block.to(torch.float32)
    if multiplier is None:
        return values
    return values.repeat_interleave(scheme.groups_of_scale, 1)[:, : multiplier.shape[1]] * multiplier.to(torch.float32)


def _by_channel(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> QTensor:
    shape, size, form = tuple(int(length) for length in meta["shape"]), int(meta["group_size"]), integer(int(meta["bits"]))
    scale, multiplier, codes = tensors["scale"], tensors.get("multiplier"), _stored_codes(tensors, form.bits, shape)
    if scale.dtype != torch.float32 or scale.shape != shape[:1] or not torch.isfinite(scale).all():
        raise ValueError(f"scale is {scale.dtype} {tuple(scale.shape)}")
    if multiplier is not None:
        groups = (shape[0], -(-math.prod(shape[1:]) // size))
        if multiplier.dtype != torch.uint8 or multiplier.shape != groups:
            raise ValueError(f"groups are {multiplier.dtype} {tuple(multiplier.shape)}")
    return QTensor(codes, scale[:, None], None, form, size, multiplier)


def _stored_codes(tensors: Mapping[str, Tensor], bits: int, shape: tuple[int, ...]) -> Tensor:
    """int8 of ``shape``. Files hold ``values`` of other widths than 4 and 8 too: nibbles below, bytes above."""
    if (packed := tensors.get("packed_values")) is not None:
        return unpack_signed(packed, shape, bits)
    stored = tensors["values"]
    if stored.dtype != (torch.uint8 if bits <= 4 else torch.int8):
        raise ValueError(f"values are {stored.dtype}")
    return unpack_nibbles(stored, shape) if bits <= 4 else stored.reshape(shape)
