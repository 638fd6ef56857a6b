"""One convolution or linear layer of a network from its weight and its inputs' statistics to the integers that its kernels take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.algorithms.channelwise import channel_grid, rows_of, shaped, steps
from engine.algorithms.gram import Gram, output_error, shrunk
from engine.algorithms.registry import Method, minmax, mse, nearest
from engine.numerics.qtensor import QTensor
from engine.numerics.sqnr import sqnr_db
from engine.numerics.weights import WeightQParams, quantize
from engine.recipe.spec import WeightSpec

# Parts of a row's largest magnitude that its grid may reach to.
CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
# Weights that a method rounds at a time, over all the grids that are tried.
AT_ONCE = 2**25


@dataclass(frozen=True)
class LayerQuantized:
    """``shift`` (out,) is what the layer's bias has to take up, or None; ``note`` a plain sentence, or None."""

    weight: QTensor
    shift: Tensor | None = None
    note: str | None = None


@dataclass(frozen=True)
class _Candidate:
    name: str
    weight: QTensor


@torch.no_grad()
def quantize_layer(weight: Tensor, spec: WeightSpec, how: Method, inputs: Sequence[Gram], has_bias: bool) -> LayerQuantized:
    """``weight`` (out, in / groups, ...), its normalization folded in already, as ``spec`` and the method ``how`` ask. ``inputs`` has
    the statistics of each group's patches; it may be empty where the method needs none, and other methods fall back on rounding to
    nearest without it, and say so.

    A ``searched`` method tries clips of the min-max grid and the grid of least squared error, and each output keeps the one with the
    least error on the calibration items. Where rounding to nearest on the min-max grid, on that of least squared error or on the
    method's own has less error at the layer's output on the items that ``inputs`` holds back, it is taken instead.

    Raises EngineError for weights that are not finite.
    """
    flat = rows_of(weight)
    if how.rounding == nearest or not inputs or not inputs[0].count:
        note = "no calibration item reached it: rounded to nearest" if how.rounding != nearest else None
        return LayerQuantized(shaped(quantize(flat, channel_grid(flat, spec, steps(flat, spec, how.grid))), weight.shape), None, note)
    centred = how.centred and has_bias
    grids = [channel_grid(flat, spec, wanted) for wanted in _wanted(flat, spec, how)]
    rounded, note = _rounded(flat, spec, how, grids, inputs, centred)
    found = _Candidate(how.title, rounded)
    notes = [note]
    if inputs[0].held_back is not None:
        found, said = _judged(flat, spec, found, inputs, centred)
        notes.append(said)
    shift = _shift(flat, found.weight, inputs, True) if centred else None
    return LayerQuantized(shaped(found.weight, weight.shape), shift, "; ".join(filter(None, notes)) or None)


def _wanted(flat: Tensor, spec: WeightSpec, how: Method) -> Iterator[Tensor]:
    if how.searched:
        widest = steps(flat, spec, minmax)
        yield from (widest * clip for clip in CLIPS)
    yield steps(flat, spec, how.grid)


def _rounded(
    flat: Tensor, spec: WeightSpec, how: Method, grids: Sequence[WeightQParams], inputs: Sequence[Gram], centred: bool
) -> tuple[QTensor, str | None]:
    """Each output on the one of ``grids`` that leaves it the least error; all of them on the same with one scale for the tensor."""
    out = len(flat) // len(inputs)
    codes, errors, notes = [], [], []
    for group, gram in enumerate(inputs):
        part = slice(group * out, (group + 1) * out)
        moments = gram.moments(centred)
        second = shrunk(moments, gram.seen)
        here, at_once = [_rows(grid, part) for grid in grids], max(AT_ONCE // flat[part].numel(), 1)
        found: list[Tensor] = []
        for start in range(0, len(here), at_once):
            grid = _joined(here[start : start + at_once])
            rounded, note = how.rounding(flat[part].repeat(len(grid.scale) // out, 1), grid, second)
            found += [rounded.codes, output_error(rounded.dequantize() - flat[part].repeat(len(grid.scale) // out, 1), moments)]
            notes.append(note)
        codes.append(torch.cat(found[::2]).reshape(len(grids), out, -1))
        errors.append(torch.cat(found[1::2]).reshape(len(grids), out))
    error = torch.cat(errors, 1)
    least = error.sum(1).argmin().expand(len(flat)) if spec.granularity == "per-tensor" else error.argmin(0)
    rows = torch.arange(len(flat))
    grid = grids[0]
    multiplier = None if grid.multiplier is None else torch.stack([g.multiplier for g in grids if g.multiplier is not None])[least, rows]
    chosen = WeightQParams(grid.scheme, torch.stack([g.scale for g in grids])[least, rows], None, multiplier)
    return chosen.with_codes(torch.cat(codes, 1)[least, rows]), next(filter(None, notes), None)


def _rows(grid: WeightQParams, part: slice) -> WeightQParams:
    return WeightQParams(grid.scheme, grid.scale[part], None, None if grid.multiplier is None else grid.multiplier[part])


def _joined(grids: Sequence[WeightQParams]) -> WeightQParams:
    """The grids of several matrices as that of one with all their rows."""
    multipliers = [grid.multiplier for grid in grids if grid.multiplier is not None]
    return WeightQParams(grids[0].scheme, torch.cat([grid.scale for grid in grids]), None, torch.cat(multipliers) if multipliers else None)


def _judged(flat: Tensor, spec: WeightSpec, own: _Candidate, inputs: Sequence[Gram], centred: bool) -> tuple[_Candidate, str]:
    """The best of ``own`` and of three roundings to nearest on the items held back, and what is said of it."""
    others = [
        _Candidate("the same grid", quantize(flat, WeightQParams.of(own.weight))),
        *(_Candidate(name, quantize(flat, channel_grid(flat, spec, steps(flat, spec, grid)))) for name, grid in _NEAREST),
    ]
    signal, least = _error(flat, own.weight, inputs, centred)
    errors = [_error(flat, other.weight, inputs, centred)[1] for other in others]
    best = min(range(len(errors)), key=errors.__getitem__)
    mine, nearest_db = sqnr_db(signal, least), sqnr_db(signal, errors[best])
    if errors[best] < least:
        where = f"rounded to nearest on {others[best].name}"
        return others[best], f"{where}: {nearest_db:.1f} dB on calibration items held back, against {mine:.1f} dB with {own.name}"
    return own, f"{own.name}: {mine:.1f} dB on calibration items held back, against {nearest_db:.1f} dB rounded to nearest"


_NEAREST = (("the min-max grid", minmax), ("the grid of least squared error", mse))


def _error(flat: Tensor, rounded: QTensor, inputs: Sequence[Gram], centred: bool) -> tuple[float, float]:
    """Squared norms of the layer's output on the items held back, and of what ``rounded`` lacks of it."""
    held, out = rounded.dequantize(), len(flat) // len(inputs)
    signal = error = 0.0
    for group, gram in enumerate(inputs):
        part = slice(group * out, (group + 1) * out)
        assert gram.held_back is not None
        shift = gram.gap(flat[part], held[part]) if centred else None
        pair = gram.held_back.errors(flat[part], held[part], shift)
        signal, error = signal + pair[0], error + pair[1]
    return signal, error


def _shift(flat: Tensor, rounded: QTensor, inputs: Sequence[Gram], whole: bool) -> Tensor:
    held, out = rounded.dequantize(), len(flat) // len(inputs)
    parts = (slice(group * out, (group + 1) * out) for group in range(len(inputs)))
    return torch.cat([gram.gap(flat[part], held[part], whole) for gram, part in zip(inputs, parts, strict=True)])
