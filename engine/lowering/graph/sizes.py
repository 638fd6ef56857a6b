"""Whether a traced graph serves images of every size, or holds numbers that were computed from the size it was traced on.

In a trace the sizes of tensors, but for the batch, are plain numbers. Where ``forward`` reads them, the graph is recorded again on
images of other sizes: equal graphs hold no size. What is decided by comparing sizes holds them in any case, as no sample of sizes
shows every branch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from engine.numerics.memory import content

_HELD = "held_sizes"
_ARITHMETIC = ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "rfloordiv", "mod", "rmod", "neg", "abs")
_ORDER = ("lt", "le", "gt", "ge")


@dataclass
class Reading:
    """What a trace did with the sizes of tensors: ``read`` as plain numbers, ``compared`` for larger or smaller."""

    read: bool = False
    compared: bool = False


class Size(int):
    """A size that tells ``reading`` when it is compared, and what is computed from it does too."""

    reading: Reading

    @classmethod
    def of(cls, value: int, reading: Reading) -> Size:
        size = cls(value)
        size.reading = reading
        return size


def _computing(name: str) -> Callable[..., Any]:
    def compute(self: Size, *others: Any) -> Any:
        value = getattr(int, name)(self, *others)
        return Size.of(value, self.reading) if type(value) is int else value

    return compute


def _comparing(name: str) -> Callable[[Size, Any], Any]:
    def compare(self: Size, other: Any) -> Any:
        self.reading.compared = True
        return getattr(int, name)(self, other)

    return compare


for _name in _ARITHMETIC:
    setattr(Size, f"__{_name}__", _computing(f"__{_name}__"))
for _name in _ORDER:
    setattr(Size, f"__{_name}__", _comparing(f"__{_name}__"))


def plain(value: Any) -> Any:
    """Arguments with every ``Size`` in them as the number that it is."""
    return fx.node.map_aggregate(value, lambda part: int(part) if isinstance(part, Size) else part)


def hold(graph: fx.Graph) -> None:
    """Marks a graph that computes with the size of the images it was traced on."""
    for node in graph.nodes:
        if node.op == "placeholder" and "shape" in node.meta:
            node.meta[_HELD] = tuple(node.meta["shape"][2:])


def held_sizes(graph: fx.Graph) -> tuple[int, ...] | None:
    """The sizes (H, W) that a graph holds, None where it serves every size."""
    return next((node.meta[_HELD] for node in graph.nodes if _HELD in node.meta), None)


def other_sizes(sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Sizes to record again on: odd steps away, by the strides that networks have, and half."""
    steps = ((4, 12, 20), (32, 64, 96))
    return [*(tuple(map(operator.add, sizes, by)) for by in steps), tuple(-(-size // 2) for size in sizes)]


def signature(gm: fx.GraphModule) -> list[tuple[Any, ...]]:
    """What a graph computes, for comparison: its nodes, and constants that the trace met by their values."""
    return [(node.op, _target(gm, node), str(node.args), str(node.kwargs)) for node in gm.graph.nodes]


def _target(gm: fx.GraphModule, node: fx.Node) -> Any:
    if node.op != "get_attr" or not str(node.target).startswith("_tensor_constant"):
        return node.target
    value: Tensor = getattr(gm, str(node.target))
    return tuple(value.shape), value.dtype, content(value)
