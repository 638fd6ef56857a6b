"""Evaluators of parts of a split, put together as one of all of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

# How a field of two parts becomes that of both: lists and counts are added up in the order of the batches, and of others one is taken.
How = Literal["sum", "max", "min", "first"]


def is_pooled(evaluator: Any) -> bool:
    """Whether evaluators of its kind can be put together: they name the fields that hold what they saw, in ``pooled``."""
    return bool(getattr(evaluator, "pooled", None))


def state_of(evaluator: Any) -> dict[str, Any]:
    """What an evaluator has seen, on the processor."""
    return {name: tree_map(_on_processor, getattr(evaluator, name)) for name in evaluator.pooled}


def add(evaluator: Any, state: Mapping[str, Any]) -> None:
    """Take in what another evaluator of later batches has seen, as if they had come here."""
    how: How
    for name, how in evaluator.pooled.items():
        mine, other = getattr(evaluator, name), state[name]
        if how == "sum":
            mine += other
        elif how == "first":
            mine = mine or other
        else:
            mine = max(mine, other) if how == "max" else min(mine, other)
        setattr(evaluator, name, mine)


def _on_processor(value: Any) -> Any:
    return value.to(torch.device("cpu")) if isinstance(value, Tensor) else value
