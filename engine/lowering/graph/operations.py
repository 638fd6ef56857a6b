"""Operations that are called through ``torch.ops``: those that a graph can store, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Of tensors to tensors alone; a name outside of this list is never looked up.
_TORCHVISION = ("deform_conv2d", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "nms")
_PREFIX = "ops.torchvision."


def of_namespace(function: Any) -> Any:
    """The function of ``torch`` that an operation of ``torch.ops.aten`` is, where it has one; else ``function``."""
    name = _qualified(function)
    if name is None or not name.startswith("aten::"):
        return function
    found: Any = getattr(torch, name.removeprefix("aten::"), None)
    return found if callable(found) else function


def name_of(function: Any) -> str | None:
    """The name under which a graph stores an operation of torchvision."""
    name = _qualified(function) or ""
    short = name.removeprefix("torchvision::")
    return f"{_PREFIX}{short}" if name != short and short in _TORCHVISION else None


def by_name(name: str) -> Callable[..., Any] | None:
    """The inverse of ``name_of``; None for a name that is none of them."""
    short = name.removeprefix(_PREFIX)
    if short == name or short not in _TORCHVISION:
        return None
    import torchvision  # noqa: F401  # registers its operations

    found: Callable[..., Any] = getattr(torch.ops.torchvision, short)
    return found


def _qualified(function: Any) -> str | None:
    """``namespace::name`` of an operation of ``torch.ops``."""
    if isinstance(function, torch._ops.OpOverload):
        return str(function._schema.name)
    return str(function._qualified_op_name) if isinstance(function, torch._ops.OpOverloadPacket) else None
