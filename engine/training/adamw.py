"""Adam with decoupled weight decay, step for step what ``torch.optim.AdamW`` computes.

Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019). Of our own for the reason that ``engine.training.sgd`` gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from engine.training.optimizer import Optimizer


class AdamW(Optimizer):
    """``groups`` hold ``params`` and, where it differs, ``weight_decay``; each gets an ``lr``, which may be changed between
    steps. ``state_dict`` is that of ``torch.optim.AdamW``."""

    def __init__(
        self, groups: Iterable[Mapping[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.param_groups: list[dict[str, Any]] = [
            {"weight_decay": 0.0, **group, "params": list(group["params"]), "lr": lr, "betas": betas, "eps": eps} for group in groups
        ]
        self._state: dict[Tensor, dict[str, Tensor]] = {}

    def _update(self, parameter: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state = self._state.get(parameter)
        if state is None:
            state = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            self._state[parameter] = state
        first, second = group["betas"]
        state["step"] += 1
        step = state["step"].item()
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        scale = state["exp_avg_sq"].sqrt().div_(math.sqrt(1 - second**step)).add_(group["eps"])
        parameter.addcdiv_(state["exp_avg"], scale, value=-group["lr"] / (1 - first**step))

    def state_dict(self) -> dict[str, Any]:
        """The moments by the parameters' numbers, and the groups with numbers in place of parameters."""
        return self._written(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError or ValueError for the state of other parameters."""
        read = self._read(state)
        self._state = {}
        for parameter, kept in read:
            moments = {name: kept[name].to(parameter, copy=True) for name in ("exp_avg", "exp_avg_sq")}
            self._state[parameter] = {"step": kept["step"].detach().clone().float().cpu(), **moments}
