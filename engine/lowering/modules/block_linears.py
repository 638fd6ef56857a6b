"""The weight matrices of a block of layers, each read and written as (out, in) whatever class holds it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.kernels.matrix.kind import kind_of
from engine.models.anatomy import linears as linears_of


@dataclass(frozen=True)
class Linear:
    """A linear layer. ``transposed`` where its weight is held as (in, out), as in transformers' ``Conv1D`` (GPT-2)."""

    name: str
    module: nn.Module
    transposed: bool

    @property
    def held(self) -> nn.Parameter:
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        first, second = self.held.shape
        return (second, first) if self.transposed else (first, second)

    def read(self) -> Tensor:
        """A copy, float32 (out, in), contiguous."""
        return self.view().clone(memory_format=torch.contiguous_format)

    def view(self) -> Tensor:
        """The weight, float32 (out, in), contiguous: a copy only where it is not held so."""
        weight = self.held.detach().to(torch.float32)
        return (weight.T if self.transposed else weight).contiguous()

    @torch.no_grad()
    def write(self, weight: Tensor) -> None:
        """Replace the weight by ``weight`` (out, in), in place and in the layer's own dtype."""
        self.held.copy_(weight.T if self.transposed else weight)

    @property
    def bias(self) -> nn.Parameter | None:
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, nn.Parameter) else None


def linears(block: nn.Module, prefix: str = "") -> list[Linear]:
    """Every ``nn.Linear`` and ``Conv1D`` below ``block``, in the order of its modules; ``prefix`` goes before their names."""
    return [Linear(f"{prefix}.{name}" if prefix else name, module, kind_of(module) == "Conv1D") for name, module in linears_of(block)]
