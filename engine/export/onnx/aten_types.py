"""Types of numbers: torch computes with operands of different types, ONNX with equal ones alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from engine.export.onnx.graph import Graph, Value

# ``aten``'s operations whose tensors are brought to one type; of those in ``_MASKED`` the argument at that place says where.
_ALIKE = frozenset((
    "add", "sub", "rsub", "mul", "div", "pow", "maximum", "minimum", "remainder", "fmod", "lerp", "addcmul", "addcdiv", "where",
    "masked_fill", "eq", "ne", "lt", "le", "gt", "ge", "cat", "stack", "clamp", "clamp_min", "clamp_max", "sum", "prod", "cumsum", "mean",
    "mm", "bmm", "matmul", "atan2", "floor_divide", "bitwise_and", "bitwise_or", "logical_and", "logical_or",
))  # fmt: skip
_MASKED = {"where": 0, "masked_fill": 1}
_KINDS = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)


def common(graph: Graph, name: str, node: fx.Node, args: Any, kwargs: Any, hint: str) -> tuple[Any, Any, torch.dtype]:
    """The arguments of ``node``, a call of ``name``, with tensors of one type, and the type that plain numbers beside them have."""
    if name not in _ALIKE:
        return args, kwargs, torch.float32
    mask = _MASKED.get(name)
    given = [argument for place, argument in enumerate(node.args) if place != mask]
    made = node.meta["val"][0] if isinstance(node.meta.get("val"), tuple | list) else node.meta.get("val")
    wanted = made.dtype if isinstance(made, Tensor) else torch.float32
    if wanted == torch.bool:
        wanted = _result_type(given)
    if wanted not in _KINDS:
        raise ValueError(f"numbers as {wanted}")

    def alike(value: Any) -> Any:
        return cast(graph, value, wanted, hint) if isinstance(value, Value) else value

    args = tuple(value if place == mask else fx.node.map_aggregate(value, alike) for place, value in enumerate(args))
    return args, fx.node.map_aggregate(kwargs, alike), wanted


def cast(graph: Graph, value: Value, kind: torch.dtype, hint: str) -> Value:
    """``value`` as numbers of ``kind``. Raises ValueError for a type that runtimes do not compute with."""
    if value.kind == kind:
        return value
    if kind not in _KINDS:
        raise ValueError(f"numbers as {kind}")
    if value.constant is not None:
        return replace(value, constant=value.constant.to(kind), kind=kind)
    to = graph.onnx.helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=kind).numpy().dtype)
    return Value(graph.node("Cast", [value.name], hint, to=to), value.shape, None, kind)


def _result_type(given: list[Any]) -> torch.dtype:
    """The type that torch compares in."""
    values = [argument.meta["val"] if isinstance(argument, fx.Node) else argument for argument in given]
    numbers = [value for value in values if isinstance(value, Tensor | int | float)]
    return torch.result_type(numbers[0], numbers[-1])
