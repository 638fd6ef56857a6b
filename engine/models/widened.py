"""Models in another precision than the one that is quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from engine.errors import EngineError

T = TypeVar("T")

_OTHERS = (torch.float16, torch.bfloat16, torch.float64)


def tried_in_float32(model: nn.Module, trial: Callable[[bool], T]) -> tuple[T, str]:
    """What ``trial`` gives with all parameters and buffers of ``model`` in float32, and what is to be said of those that were not:
    empty where there were none. A model whose forward asks for the precision that it has gets that back, and is tried again.
    ``trial`` is told whether the model was changed. Raises what ``trial`` raises."""
    said, back = _widen(model)
    try:
        return trial(bool(said)), said
    except EngineError:
        if not said:
            raise
    back()
    return trial(False), ""


def _widen(model: nn.Module) -> tuple[str, Callable[[], None]]:
    """Brings what is float16, bfloat16 or float64 to float32, in place; what is to be said, and what takes it back."""
    held: list[tuple[Any, Tensor]] = []
    for tensor in {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values():
        if tensor.dtype in _OTHERS:
            held.append((tensor, tensor.data))
            tensor.data = tensor.data.float()
    kinds = sorted({str(data.dtype).removeprefix("torch.") for _, data in held})

    def back() -> None:
        for tensor, data in held:
            tensor.data = data

    return (f"its weights are {' and '.join(kinds)}: taken as float32" if held else ""), back


def with_float32(value: Any) -> Any:
    """A tree of tensors, those of other precision as float32."""
    return tree_map(lambda x: x.float() if isinstance(x, Tensor) and x.dtype in _OTHERS else x, value)
