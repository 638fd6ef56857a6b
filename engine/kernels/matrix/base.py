"""What a kernel of quantized matrices is asked, and what it answers: before anything is rounded, and with the integers in hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from engine.kernels.matrix.kind import Kind, kind_of
from engine.kernels.probe import Machine
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix
from engine.numerics.scheme import WeightScheme, scheme_of
from engine.recipe.spec import ActivationSpec, LayerSpec


@dataclass(frozen=True)
class Asked:
    """A matrix as a plan knows it. ``shape`` is (out, in), or (rows, width) of an embedding. ``plain`` is whether it is computed as
    transformers' own layer of this ``kind`` is: an embedding that adds an offset or a factor is not."""

    kind: Kind
    shape: tuple[int, int]
    weights: WeightScheme
    activations: ActivationSpec | None = None
    plain: bool = True

    @property
    def int8(self) -> bool:
        """Whether int8 with one scale for each output holds the very same weights."""
        whole = self.weights.groups(self.shape[1]) == 1 and not self.weights.format.levels
        return whole and (self.weights.symmetric or self.weights.bits < 8)


def form_name(weights: WeightScheme) -> str:
    """``int4``, or the name of a format that is no integer."""
    return weights.format.name if weights.format.levels else f"int{weights.bits}"


class MatrixKernel(Protocol):
    """``refuses`` gives the reason why this kernel does not compute a matrix, or None; ``label`` what it is called in a table.
    ``note`` is a sentence that a person is told before choosing it, or None. ``storage_only`` is whether neither memory nor time
    are less than float32's while it runs.

    ``computed`` gives the weights that it multiplies with, float32 (out, in); ``build`` the module, or None where the module in float32
    stays. ``bias`` is float32 (out,) or None, what is behind ``module`` is not kept."""

    storage_only: bool

    def label(self, asked: Asked, machine: Machine) -> str: ...

    def refuses(self, asked: Asked, machine: Machine) -> str | None: ...

    def note(self, asked: Asked, machine: Machine) -> str | None: ...

    def computed(self, weight: QTensor) -> Tensor: ...

    def build(self, matrix: QuantizedMatrix, bias: Tensor | None, machine: Machine) -> nn.Module | None: ...


def asked(spec: LayerSpec, kind: Kind, shape: tuple[int, int], plain: bool = True) -> Asked:
    """What a plan asks for with ``spec``, whose weights are not None. An embedding has no activations to round."""
    assert spec.weights is not None
    return Asked(kind, shape, scheme_of(spec.weights), None if kind == "Embedding" else spec.activations, plain)


def asked_of(matrix: QuantizedMatrix, module: nn.Module) -> Asked:
    """What a quantized matrix asks for in the place of ``module``. Raises ValueError for a module that holds no matrix."""
    kind = kind_of(module)
    if kind is None:
        raise ValueError(f"{type(module).__name__} holds no matrix")
    out, given = matrix.weight.codes.shape
    return Asked(kind, (out, given), matrix.weight.scheme, None if kind == "Embedding" else matrix.activations, is_plain(module))


def is_plain(module: nn.Module) -> bool:
    """False for an embedding that does more than look rows up: OPT's positions, Gemma's factor, norms that are bounded."""
    return not isinstance(module, nn.Embedding) or (type(module) is nn.Embedding and module.max_norm is None)
