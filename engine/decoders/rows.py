"""Embeddings that stay packed in memory: the rows that are looked up are unpacked."""

from __future__ import annotations

from torch import Tensor, nn

from engine.decoders.kernel import Asked
from engine.decoders.quantized import QuantizedMatrix
from engine.kernels.probe import Machine
from engine.quant.grouped import GroupedWeight, from_tensors


class Rows:
    """Any grid: an embedding is looked up, not multiplied."""

    storage_only = False

    def label(self, asked: Asked, machine: Machine) -> str:
        return f"int{asked.weights.bits} rows"

    def refuses(self, asked: Asked, machine: Machine) -> str | None:
        if asked.kind != "Embedding":
            return "no embedding"
        return None if asked.plain else "this embedding does more than look rows up"

    def note(self, asked: Asked, machine: Machine) -> str | None:
        return None

    def computed(self, weight: GroupedWeight) -> GroupedWeight:
        return weight

    def build(self, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> nn.Module:
        return PackedEmbedding(matrix.weight)


class PackedEmbedding(nn.Module):
    """Ids of any shape to float32 (..., width), as ``weight.dequantize()[ids]``. Raises IndexError for ids that are no row."""

    def __init__(self, weight: GroupedWeight) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.values.shape
        self._tensors, self._meta = weight.to_tensors(), weight.meta()

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.reshape(-1)
        some = {name: held[flat] for name, held in self._tensors.items()}
        rows = from_tensors(some, {**self._meta, "shape": [len(flat), self.embedding_dim]}).dequantize()
        return rows.view(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self._meta['bits']} bits"
