"""What the optimizers have in common: groups of parameters, steps, and a state by the parameters' numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Optimizer:
    """``param_groups`` are dictionaries with ``params``, ``weight_decay`` and ``lr``, which may be changed between steps."""

    param_groups: list[dict[str, Any]]

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

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError or ValueError for the state of other parameters."""
        raise NotImplementedError

    def _update(self, parameter: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _written(self, state: Mapping[Tensor, Mapping[str, Any]]) -> dict[str, Any]:
        """``state`` by the parameters' numbers, and the groups with numbers in place of parameters."""
        numbers = self._numbers()
        groups = [{**group, "params": [numbers[p] for p in group["params"]]} for group in self.param_groups]
        return {"state": {numbers[parameter]: dict(kept) for parameter, kept in state.items()}, "param_groups": groups}

    def _read(self, state: Mapping[str, Any]) -> list[tuple[Tensor, Mapping[str, Any]]]:
        """What ``_written`` gave, by parameter. Raises KeyError or ValueError for the state of other parameters."""
        parameters = list(self._numbers())
        if [len(group["params"]) for group in state["param_groups"]] != [len(group["params"]) for group in self.param_groups]:
            raise ValueError("the saved optimizer belongs to other parameters")
        return [(parameters[number], kept) for number, kept in state["state"].items()]

    def _numbers(self) -> dict[Tensor, int]:
        return {p: number for number, p in enumerate(p for group in self.param_groups for p in group["params"])}
