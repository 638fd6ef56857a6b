"""Multiply-adds of each node of a graph, counted while it runs: whatever class or function a product is written as."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from engine.lowering.graph.call import inputs_of
from engine.lowering.graph.kinds import module_of
from engine.tasks.base import Batch


@dataclass(frozen=True)
class Cost:
    """``macs`` are the multiply-adds of a node for one image; ``what`` is the class or function that it calls."""

    node: str
    what: str
    macs: int


def costs(gm: fx.GraphModule, x: Batch | Tensor | tuple[Tensor, ...]) -> tuple[Cost, ...]:
    """What multiplies matrices in ``gm`` (convolutions, linear layers, attention, products of values) on ``x``,
    one item, in order. ``gm`` in eval mode; operations on elements alone are not counted."""
    counting = _Counting(gm)
    with torch.no_grad(), decomposed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of graphics cards, where oneDNN is switched.
        counting.run(*(value.clone() for value in inputs_of(gm, x)))
    return tuple(counting.found)


class _Counting(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.found: list[Cost] = []

    def run_node(self, n: fx.Node) -> Any:
        unfused = torch.backends.mkldnn.flags(enabled=False) if _recurs(module_of(n)) else nullcontext()
        with unfused, FlopCounterMode(display=False, custom_mapping=_more()) as counter:
            value = super().run_node(n)
        if counter.get_total_flops():
            self.found.append(Cost(n.name, _name(n), counter.get_total_flops() // 2))
        return value


def _more() -> dict[Any, Callable[..., int]]:
    """Operations that torch's counter passes over, with two operations for each multiply-add as it counts them."""
    aten = torch.ops.aten
    found: dict[Any, Callable[..., int]] = {
        aten.mv: lambda matrix, vector, *_, **__: 2 * math.prod(matrix),
        aten.addmv: lambda start, matrix, vector, *_, **__: 2 * math.prod(matrix),
        aten.dot: lambda a, b, *_, **__: 2 * math.prod(a),
        # (N, in1), (out, in1, in2) and (N, in2), each with axes of size one.
        aten._trilinear: lambda a, weight, b, *_, **__: 2 * a[0] * math.prod(weight),
    }
    if hasattr(torch.ops.torchvision, "deform_conv2d"):
        found[torch.ops.torchvision.deform_conv2d] = lambda x, weight, *_, out_shape, **__: 2 * math.prod(out_shape) * math.prod(weight[1:])
    return found


def _recurs(module: nn.Module | None) -> bool:
    """oneDNN has recurrent layers as one operation, which no counter knows."""
    return module is not None and any(isinstance(part, nn.RNNBase) for part in module.modules())


def _name(node: fx.Node) -> str:
    module = module_of(node)
    return type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target)).strip("_")


@contextmanager
def decomposed() -> Iterator[None]:
    """Attention as the products that it is made of."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
