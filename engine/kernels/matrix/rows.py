"""Embeddings that stay packed in memory: the rows that are looked up are unpacked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from engine.kernels.matrix.base import Asked, form_name
from engine.kernels.probe import Machine
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix


class Rows:
    """Any grid: an embedding is looked up, not multiplied."""

    storage_only = False

    def label(self, asked: Asked, machine: Machine) -> str:
        return f"{form_name(asked.weights)} rows"

    def refuses(self, asked: Asked, machine: Machine) -> str | None:
        if asked.kind != "Embedding":
            return "no embedding"
        return None if asked.plain else "this embedding does more than look rows up"

    def note(self, asked: Asked, machine: Machine) -> str | None:
        return None

    def computed(self, weight: QTensor) -> Tensor:
        return weight.dequantize()

    def build(self, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> nn.Module:
        return PackedEmbedding(matrix.weight.to(machine.device))


class PackedEmbedding(nn.Module):
    """Ids of any shape to float32 (..., width), as ``weight.dequantize()[ids]``. Raises IndexError for ids that are no row."""

    def __init__(self, weight: QTensor) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.codes.shape
        # Of the codes that are looked up elsewhere nothing is kept here.
        self._about = replace(weight, codes=weight.codes[:0])
        self._look: Callable[[Tensor], Tensor] = _Packed(weight) if weight.bits < 8 else _Whole(weight.codes)

    def share(self, look: Callable[[Tensor], Tensor]) -> None:
        """Look the integers up by ``look``, ids (n,) to (n, width), and let go of those that are held here."""
        self._look = look

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.reshape(-1)
        return self._about.rows(flat, self._look(flat)).dequantize().view(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self._about.bits} bits"


class _Whole:
    def __init__(self, values: Tensor) -> None:
        self._values = values

    def __call__(self, ids: Tensor) -> Tensor:
        return self._values[ids]


class _Packed:
    """Codes of fewer than 8 bits side by side in bytes."""

    def __init__(self, weight: QTensor) -> None:
        self.packed, self._format, self._width = weight.format.pack(weight.codes), weight.format, weight.shape[1]

    def __call__(self, ids: Tensor) -> Tensor:
        return self._format.unpack(self.packed[ids], self._width)
