"""The arithmetic of uniform quantization, as pure functions.

Activations are unsigned and affine: q = clamp(round(x / scale) + zero_point, 0, 2^bits - 1). Weights are signed and
symmetric: q = clamp(round(w / scale), -2^(bits-1), 2^(bits-1) - 1), the scale taken for the tensor, an output channel,
or a group of inputs. Notation follows Nagel et al. 2021 (arXiv:2106.08295), section 2.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.recipe.spec import WeightSpec


@dataclass(frozen=True)
class QParams:
    """An affine activation grid: ``x = (q - zero_point) * scale`` for q in 0..``qmax``."""

    scale: float
    zero_point: int
    qmax: int = 255

    @property
    def bits(self) -> int:
        return self.qmax.bit_length()


def affine(low: float, high: float, bits: int, symmetric: bool = False) -> QParams:
    """The grid that covers [low, high] and represents zero exactly. Raises EngineError for a range that is not finite."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise EngineError(f"an activation range of [{low}, {high}] cannot be quantized: the model or the data gives NaN or infinity")
    qmax = 2**bits - 1
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        middle = (qmax + 1) // 2
        scale = max(high / (qmax - middle), -low / middle)
        return QParams(_usable(scale), middle, qmax)
    scale = _usable((high - low) / qmax)
    return QParams(scale, min(max(round(-low / scale), 0), qmax), qmax)


def _usable(scale: float) -> float:
    """The kernels hold scales in float32: a degenerate range gets a step of one."""
    held = torch.tensor(scale, dtype=torch.float32).item()
    return held if held > torch.finfo(torch.float32).tiny else 1.0


def quantize(x: Tensor, q: QParams) -> Tensor:
    """Float tensor to uint8 on the grid ``q``."""
    return x.mul(1.0 / q.scale).round_().add_(q.zero_point).clamp_(0, q.qmax).to(torch.uint8)


def dequantize(x: Tensor, q: QParams) -> Tensor:
    """uint8 tensor on the grid ``q`` to float32."""
    return x.to(torch.float32).sub_(q.zero_point).mul_(q.scale)


@dataclass(frozen=True)
class QWeight:
    """Quantized weights of one layer.

    ``values`` is int8 of the weight's shape and holds numbers of ``bits`` bits; ``scale`` is float32 (out,). With
    groups, ``multiplier`` is uint8 (out, groups) and input group g of channel c has the step
    ``scale[c] * multiplier[c, g]``: the product ``values * multiplier`` still fits in int8, so grouped weights run on
    the same per-channel int8 kernels (two-level scales as in QServe, Lin et al. 2024, arXiv:2405.04532, section 4.1).
    """

    values: Tensor
    scale: Tensor
    bits: int
    multiplier: Tensor | None = None
    group_size: int = 0

    def integers(self) -> Tensor:
        """int8 weights in units of the per-channel scale: what a kernel takes."""
        if self.multiplier is None:
            return self.values
        flat = self.values.flatten(1)
        spread = self.multiplier.repeat_interleave(self.group_size, 1)[:, : flat.shape[1]]
        return (flat.to(torch.int16) * spread.to(torch.int16)).to(torch.int8).reshape(self.values.shape)

    def dequantize(self) -> Tensor:
        return self.integers().to(torch.float32) * per_channel(self.scale, self.values.dim())


def per_channel(scale: Tensor, dims: int) -> Tensor:
    """A (out,) tensor reshaped to multiply weights of ``dims`` dimensions."""
    return scale.reshape(-1, *[1] * (dims - 1))


def weight_range(bits: int) -> tuple[int, int]:
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def quantize_weight(weight: Tensor, spec: WeightSpec) -> QWeight:
    """Round to nearest on the grid that ``spec`` asks for. ``weight`` is (out, ...) and finite, else EngineError."""
    if not torch.isfinite(weight).all():
        raise EngineError("the weights hold NaN or infinity: they cannot be quantized; load other weights or train again")
    flat = weight.detach().to(torch.float32).flatten(1)
    if spec.granularity == "per-group":
        return _quantize_groups(flat, weight.shape, spec)
    rows = flat.reshape(1, -1) if spec.granularity == "per-tensor" else flat
    scale = best_scale(rows, spec).expand(flat.shape[0]).clone()
    return QWeight(round_to(flat, scale[:, None], spec.bits).to(torch.int8).reshape(weight.shape), scale, spec.bits)


def best_scale(rows: Tensor, spec: WeightSpec) -> Tensor:
    """One step for each row of a (rows, n) matrix: from its largest magnitude, or the clip of least squared error."""
    _, high = weight_range(spec.bits)
    top = rows.abs().amax(1).clamp_min(1e-12) / high
    if spec.scale == "minmax":
        return top
    # From 4 bits up the clipping error of bell-shaped weights only grows below a third of the range; with fewer levels
    # heavy tails are best cut to a tenth.
    factors = [0.3 + 0.05 * i for i in range(17)] if spec.bits > 3 else [0.1 + 0.05 * i for i in range(21)]
    best, least = _least_error(rows, spec.bits, factors, top, top)
    return _least_error(rows, spec.bits, torch.linspace(0.9625, 1.0375, 7).tolist(), best, best, least)[0]


def _least_error(
    rows: Tensor, bits: int, factors: list[float], around: Tensor, best: Tensor, least: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The best of ``around * factor`` for each row, and its squared error."""
    least = torch.full_like(around, math.inf) if least is None else least
    for factor in factors:
        step = around * factor
        error = round_to(rows, step[:, None], bits).mul_(step[:, None]).sub_(rows).square_().sum(1)
        better = error < least
        best, least = torch.where(better, step, best), torch.where(better, error, least)
    return best, least


def round_to(values: Tensor, step: Tensor, bits: int) -> Tensor:
    """Integers, as floats, nearest to ``values / step`` within the signed range."""
    low, high = weight_range(bits)
    return (values / step).round_().clamp_(low, high)


def _quantize_groups(flat: Tensor, shape: torch.Size, spec: WeightSpec) -> QWeight:
    out, inputs = flat.shape
    size = spec.group_size
    groups = -(-inputs // size)
    padded = torch.nn.functional.pad(flat, (0, groups * size - inputs)).reshape(out * groups, size)
    wanted = best_scale(padded, spec).reshape(out, groups)
    largest = 128 // 2 ** (spec.bits - 1)
    scale = wanted.amax(1) / largest
    ratio = wanted / scale[:, None]
    best, least = torch.full_like(ratio, largest), torch.full_like(ratio, math.inf)
    for candidate in (ratio.floor(), ratio.ceil()):
        multiplier = candidate.clamp(1, largest)
        step = (multiplier * scale[:, None]).reshape(-1, 1)
        error = (round_to(padded, step, spec.bits) * step).sub_(padded).square_().sum(1).reshape(out, groups)
        better = error < least
        best, least = torch.where(better, multiplier, best), torch.where(better, error, least)
    step = (best * scale[:, None]).reshape(-1, 1)
    values = round_to(padded, step, spec.bits).reshape(out, groups * size)[:, :inputs]
    return QWeight(values.to(torch.int8).reshape(shape), scale, spec.bits, best.to(torch.uint8), size)


def pack_nibbles(values: Tensor) -> Tensor:
    """int8 numbers in -8..7, any shape, to uint8 of half the count: the even-indexed one in the low nibble."""
    flat = (values.flatten() & 0xF).to(torch.uint8)
    if flat.numel() % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    return flat[0::2] | (flat[1::2] << 4)


def unpack_nibbles(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of ``pack_nibbles``."""
    both = torch.stack([packed & 0xF, packed >> 4], 1).flatten()[: math.prod(shape)].to(torch.int8)
    return torch.where(both > 7, both - 16, both).reshape(shape)


def sqnr_db(signal: float, noise: float) -> float:
    """Signal-to-quantization-noise ratio in dB of two sums of squares; infinite without noise."""
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return math.nan
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)
