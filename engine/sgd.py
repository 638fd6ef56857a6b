"""Stochastic gradient descent with Nesterov momentum, step for step what ``torch.optim.SGD`` computes.

Making an optimizer of torch's own imports its compiler: four seconds in which a person who began to train sees nothing and
cannot stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class SGD:
    """``groups`` hold ``params`` and, where it differs, ``weight_decay``; each gets an ``lr``, which may be changed between
    steps. ``state_dict`` is that of ``torch.optim.SGD``."""

    def __init__(self, groups: Iterable[Mapping[str, Any]], lr: float, momentum: float) -> None:
        self.param_groups: list[dict[str, Any]] = [{"weight_decay": 0.0, **group, "lr": lr, "momentum": momentum} for group in groups]
        self._momentum: dict[Tensor, Tensor] = {}

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients; a parameter without one stays."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

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
        numbers = self._numbers()
        state = {numbers[parameter]: {"momentum_buffer": past} for parameter, past in self._momentum.items()}
        groups = [{**group, "params": [numbers[p] for p in group["params"]]} for group in self.param_groups]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError or ValueError for the state of other parameters."""
        parameters = list(self._numbers())
        if [len(group["params"]) for group in state["param_groups"]] != [len(group["params"]) for group in self.param_groups]:
            raise ValueError("the saved optimizer belongs to other parameters")
        self._momentum = {}
        for number, kept in state["state"].items():
            if kept.get("momentum_buffer") is not None:
                self._momentum[parameters[number]] = kept["momentum_buffer"].to(parameters[number], copy=True)

    def _numbers(self) -> dict[Tensor, int]:
        return {p: number for number, p in enumerate(p for group in self.param_groups for p in group["params"])}
