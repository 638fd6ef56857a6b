"""Any grid on int8 with one symmetric scale for each output: what the integer kernels multiply with."""

from __future__ import annotations

import torch

from engine.numerics.grouped import Grid, GroupedWeight, GroupSpec, minmax, quantize

INT8 = GroupSpec(8, 0, True)


def on_int8(weight: GroupedWeight) -> GroupedWeight:
    """The same weights where one scale a row suffices (symmetric, or fewer than 8 bits); otherwise each is rounded once more, to
    1/127 of the largest of its row."""
    spec = weight.spec
    if spec.groups(weight.values.shape[1]) > 1 or (spec.bits == 8 and not spec.symmetric):
        floats = weight.dequantize()
        return quantize(floats, minmax(floats, INT8))
    values = weight.values
    if weight.zero is not None:
        values = (values.to(torch.int16) - weight.zero.to(torch.int16)).to(torch.int8)
    return GroupedWeight(values, Grid(INT8, weight.scale, None))
