"""What block-by-block quantization says of each matrix. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from engine.events import Detail


@dataclass(frozen=True)
class MatrixQuantized(Detail):
    """One matrix is at its final bits.

    ``sqnr_db`` is of the layer's output on the calibration text: the signal is W x, the noise (W - Ŵ) x, less its mean where
    the layer's bias takes that up; of the weights alone where ``method`` needs no text. ``folded_into`` names the layer that
    took the input's scale back. ``note`` is a plain sentence, or None. ``kept`` was done before, and read from a checkpoint.
    """

    name: str
    spec: str
    method: str
    sqnr_db: float
    bytes: int
    folded_into: str | None = None
    note: str | None = None
    kept: bool = False
