"""Stochastic gradient descent with Nesterov momentum, step for step what ``torch.optim.SGD`` computes.

Making an optimizer of torch's own imports its compiler: four seconds in which a person who began to train sees nothing and
cannot stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from engine.training.optimizer import Optimizer


class SGD(Optimizer):
    """``groups`` hold ``params`` and, where it differs, ``weight_decay``; each gets an ``lr``, which may be changed between
    steps. ``state_dict`` is that of ``torch.optim.SGD``."""

    def __init__(self, groups: Iterable[Mapping[str, Any]], lr: float, momentum: float) -> None:
        self.param_groups: list[dict[str, Any]] = [{"weight_decay": 0.0, **group, "lr": lr, "momentum": momentum} for group in groups]
        self._momentum: dict[Tensor, Tensor] = {}

    def _update(self, parameter: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        momentum = group["momentum"]
        past = self._momentum.get(parameter)
        if past is None:
            self._momentum[parameter] = past = gradient.clone()
        else:
            past.mul_(momentum).add_(gradient)
        parameter.add_(gradient.add(past, alpha=momentum), alpha=-group["lr"])

    def state_dict(self) -> dict[str, Any]:
        """Momentum by the parameters' numbers, and the groups with numbers in place of parameters."""
        return self._written({parameter: {"momentum_buffer": past} for parameter, past in self._momentum.items()})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError or ValueError for the state of other parameters."""
        read = self._read(state)
        self._momentum = {p: kept["momentum_buffer"].to(p, copy=True) for p, kept in read if kept.get("momentum_buffer") is not None}
