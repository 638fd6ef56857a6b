"""An assignment to a part of a tensor (``y[:, 0] = x``) as operations that give the whole tensor anew.

A graph of values has no place that could change; what its author writes as a change is the tensor after it.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx.proxy import TraceError

OUT_OF_PLACE = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "xor", "lshift", "rshift", "matmul")
} | {operator.iand: operator.and_, operator.ior: operator.or_}
"""Operators that change their first operand, and those that leave it."""


def changed(part: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``part.method(…)`` makes of ``part``, ``method`` being one that works in place. Raises TraceError for one that draws."""
    if method == "copy_":
        return _like(part, args[0])
    if method == "fill_":
        return _like(part, args[0])
    if method == "zero_":
        return torch.zeros_like(part)
    plain = method.removesuffix("_")
    if not hasattr(Tensor, plain):
        raise TraceError(f"changes a part of a tensor in place ({method})")
    return _like(part, getattr(part, plain)(*args, **kwargs))


def is_view(place: Any) -> bool:
    """Whether an index takes a view of a tensor: numbers, slices and ``...`` do; masks and tensors of indices give a copy."""
    parts = place if isinstance(place, tuple) else (place,)
    return all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in parts)


def assigned(whole: Any, rank: int, place: Any, value: Any) -> Any:
    """``whole``, of ``rank`` dimensions, after ``whole[place] = value``. ``whole`` is a tensor, or what stands for one in a trace.

    Raises TraceError for an index that has no such form: lists, masks with as many values as they are true, tensors between slices.
    """
    parts = place if isinstance(place, tuple) else (place,)
    if any(part is None or isinstance(part, list) for part in parts):
        raise TraceError("assigns to a part of a tensor by an index that a graph cannot hold")
    if is_view(place):
        return _by_slices(whole, _per_dimension(parts, rank), value)
    if len(parts) == 1 and _is_mask(parts[0]):
        return _by_mask(whole, rank, parts[0], value)
    if all(_is_tensor(part) and not _is_mask(part) for part in parts):
        return torch.index_put(whole, parts, _like(whole[place], value))
    raise TraceError("assigns to a part of a tensor by an index that a graph cannot hold")


def _per_dimension(parts: tuple[Any, ...], rank: int) -> list[tuple[int, Any]]:
    """The dimensions that an index says something of."""
    if Ellipsis in [part if part is Ellipsis else None for part in parts]:
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        missing = rank - (len(parts) - 1)
        parts = (*parts[:at], *[slice(None)] * missing, *parts[at + 1 :])
    return [(i, part) for i, part in enumerate(parts) if part != slice(None)]


def _by_slices(whole: Any, parts: list[tuple[int, Any]], value: Any) -> Any:
    if not parts:
        return _like(whole, value)
    (dim, part), *rest = parts
    if isinstance(part, slice):
        start, stop, step = part.start, part.stop, part.step or 1
        inner = whole[(slice(None),) * dim + (part,)]
        changed = _by_slices(inner, rest, value)
        return torch.slice_scatter(whole, changed, dim, start, stop, step)
    inner = torch.select(whole, dim, part)
    changed = _by_slices(inner, [(other - 1, index) for other, index in rest], value)
    return torch.select_scatter(whole, changed, dim, part)


def _by_mask(whole: Any, rank: int, mask: Any, value: Any) -> Any:
    if _is_tensor(value) and value.dim():
        raise TraceError("assigns as many values as a mask is true")
    for _ in range(rank - mask.dim()):
        mask = mask.unsqueeze(-1)
    return torch.where(mask, value, whole) if _is_tensor(value) else torch.masked_fill(whole, mask, value)


def _is_tensor(part: Any) -> bool:
    """A tensor, or what stands for one in a trace."""
    return isinstance(part, Tensor) or isinstance((getattr(part, "known", None) or (None,))[0], Tensor)


def _is_mask(part: Any) -> bool:
    return _is_tensor(part) and part.dtype in (torch.bool, torch.uint8)


def _like(part: Any, value: Any) -> Any:
    """``value`` in the shape and type of ``part``."""
    if not _is_tensor(value):
        return torch.full_like(part, value)
    value = value if value.dtype == part.dtype else value.to(part.dtype)
    return torch.broadcast_to(value, part.shape) if _shape(value) != _shape(part) else value


def _shape(value: Any) -> tuple[Any, ...]:
    """Sizes that follow from the batch are other objects each time they are asked for: equal ranks and sizes show in the examples."""
    known = getattr(value, "known", None) or (value,)
    return tuple(tuple(one.shape) for one in known)
