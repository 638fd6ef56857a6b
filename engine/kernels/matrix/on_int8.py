"""Any grid on int8 with one symmetric scale for each output: what the integer kernels multiply with."""

from __future__ import annotations

from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import int_scheme
from engine.numerics.weights import minmax, quantize

INT8 = int_scheme(8, 0, True)


def on_int8(weight: QTensor) -> QTensor:
    """The same weights where one scale a row suffices (symmetric, or fewer than 8 bits); otherwise each is rounded once more, to
    1/127 of the largest of its row."""
    if weight.scale.shape[1] > 1 or (weight.bits == 8 and weight.zero is not None):
        floats = weight.dequantize()
        return quantize(floats, minmax(floats, INT8))
    return QTensor(weight.integers(), weight.scale, None, INT8.format)
