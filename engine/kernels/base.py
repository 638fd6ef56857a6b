"""The one interface between a quantized layer and what computes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.numerics.qparams import QParams

LayerFunction = Callable[..., Tensor]
# torch's own, by the number of spatial dimensions.
CONVOLUTIONS: dict[int, LayerFunction] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
# What a kernel may run before it rounds, by ``IntegerLayer.activation``.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x, "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish, "silu": F.silu, "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"), "sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid, "tanh": torch.tanh,
    "mish": F.mish,
}  # fmt: skip


@dataclass(frozen=True)
class IntegerLayer:
    """All that a kernel needs of one layer.

    ``weight`` is int8 (out, in/groups, ...); ``weight_scale`` float32 (out,); ``bias`` float32 (out,) or None. The
    input is uint8 on the grid ``input``; the result is uint8 on ``output``, or float32 where that is None. With
    ``accumulate`` the function takes a second uint8 tensor on that grid, adds it before the activation, and may
    overwrite it.
    """

    kind: str
    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    input: QParams
    output: QParams | None
    activation: str = "none"
    accumulate: QParams | None = None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def dims(self) -> int:
        """Spatial dimensions: 0 for a linear layer."""
        return self.weight.dim() - 2


class Fixable(Protocol):
    """A function of tensors that can be tied to memory: then it costs no allocation and no look at its arguments.

    ``fix`` gives a function that reads ``inputs`` and writes ``out`` whenever it is called, or None where that cannot be;
    ``dense`` gives a tensor as it can be read: itself, or a copy in another layout. A layer with a residual finds it in ``out``.
    """

    def __call__(self, *inputs: Tensor) -> Tensor: ...

    def fix(self, inputs: tuple[Tensor, ...], out: Tensor) -> Callable[[Tensor], None] | None: ...

    def dense(self, x: Tensor) -> Tensor: ...


class Steps(Protocol):
    """Steps between layers that a library computes on integers; None where it cannot. ``instead`` computes other shapes."""

    def quantize(self, q: QParams, as_it_lies: bool, instead: LayerFunction) -> Fixable | None: ...

    def max_pool(
        self, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], instead: LayerFunction
    ) -> Fixable | None: ...

    def add(self, left: QParams, right: QParams, target: QParams, relu: bool, instead: LayerFunction) -> Fixable | None: ...

    def mean(self, source: QParams, target: QParams, flat: bool, instead: LayerFunction) -> Fixable | None: ...

    def affine(
        self, factor: Tensor, shift: Tensor, source: QParams, target: QParams, relu: bool, instead: LayerFunction
    ) -> Fixable | None: ...

    def gate(self, values: QParams, gates: QParams, target: QParams, instead: LayerFunction) -> Fixable | None: ...


class Kernel(Protocol):
    """``refuses`` gives the reason why this kernel cannot compute a layer, or None; ``build`` gives the function;
    ``steps`` what it can do between layers."""

    name: str
    simulated: bool

    def label(self, layer: IntegerLayer) -> str: ...

    def refuses(self, layer: IntegerLayer) -> str | None: ...

    def build(self, layer: IntegerLayer) -> LayerFunction: ...

    def steps(self) -> Steps | None: ...


def kernel_of_steps(kernels: Sequence[Kernel]) -> str:
    """The kernel that computes the steps between layers on integers; empty where none does."""
    return next((kernel.name for kernel in kernels if kernel.steps() is not None), "")


def compute(module: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a convolution or linear ``module`` computes with other parameters."""
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, bias)
    return CONVOLUTIONS[weight.dim() - 2](x, weight, bias, module.stride, module.padding, module.dilation, module.groups)


def geometry(module: Any) -> dict[str, Any]:
    """Stride, padding, dilation and groups of a convolution, as ``IntegerLayer`` takes them; empty for a linear layer.

    ``padding="same"`` is resolved when it is symmetric; raises ValueError otherwise.
    """
    if not hasattr(module, "stride"):
        return {}
    padding = module.padding
    if padding == "valid":
        padding = (0,) * len(module.stride)
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if any(t % 2 for t in total):
            raise ValueError("padding 'same' that is wider on one side")
        padding = tuple(t // 2 for t in total)
    if module.padding_mode != "zeros":
        raise ValueError(f"padding mode {module.padding_mode!r}")
    return {"stride": tuple(module.stride), "padding": tuple(padding), "dilation": tuple(module.dilation), "groups": module.groups}
