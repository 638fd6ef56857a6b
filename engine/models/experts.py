"""Mixtures of experts whose weights lie in one tensor of three dimensions, as layers of their own: each is then a matrix among others.

transformers 5 keeps the matrices of all experts of a block together and says with them how they lie; the ways in which it computes
them give the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# What transformers notes at a class of fused experts, and the tensors of three dimensions that it may have.
_NOTED = ("has_gate", "has_bias", "is_transposed", "_apply_gate")
_FIRST = ("gate_up_proj", "up_proj")
_LAST = "down_proj"


class SeparateExperts(nn.Module):
    """Experts that are called with hidden states (T, width), the numbers (T, k) of the experts of each and their weights (T, k), and
    return (T, width). Expert ``i`` is the child named so, with two linear layers; ``rule`` is what was fused, without its weights."""

    def __init__(self, fused: Any) -> None:
        super().__init__()
        self.first = next(name for name in _FIRST if isinstance(getattr(fused, name, None), nn.Parameter))
        self.gated = bool(fused.has_gate)
        count = len(getattr(fused, _LAST))
        for number in range(count):
            expert = nn.Module()
            for name in (self.first, _LAST):
                expert.add_module(name, _linear(fused, name, number))
            self.add_module(str(number), expert)
        self.count = count
        for name in (self.first, _LAST):
            for held in (name, f"{name}_bias"):
                if held in fused._parameters:
                    fused._parameters[held] = None
        self.rule = fused

    def forward(self, hidden: Tensor, *routing: Tensor, **named: Tensor) -> Tensor:
        chosen, weights = (*routing, *named.values())
        result = torch.zeros_like(hidden)
        # A number beyond the last expert stands for none.
        for number in torch.unique(chosen).tolist():
            if not 0 <= number < self.count:
                continue
            token, place = torch.where(chosen == number)
            expert: Any = self.get_submodule(str(number))
            inner = getattr(expert, self.first)(hidden[token])
            inner = self.rule._apply_gate(inner) if self.gated else self.rule.act_fn(inner)
            out = expert.down_proj(inner) * weights[token, place, None]
            result.index_add_(0, token, out.to(result.dtype))
        return result


def separate_experts(model: nn.Module) -> tuple[str, ...]:
    """Replace, in place, fused experts of ``model`` by separate ones. Returns their paths."""
    found = [path for path, module in model.named_modules() if _is_fused(module)]
    for path in found:
        model.set_submodule(path, SeparateExperts(model.get_submodule(path)))
    return tuple(found)


def has_separate_experts(model: nn.Module) -> bool:
    return any(isinstance(module, SeparateExperts) for module in model.modules())


def holds_experts(model: nn.Module) -> bool:
    """Whether experts that transformers keeps in one tensor are in ``model``, fused or separate."""
    return any(isinstance(module, SeparateExperts) or _is_fused(module) for module in model.modules())


def is_expert(path: str) -> bool:
    """Whether the layer at ``path`` is one that a router may leave out."""
    return ".experts." in path


def _is_fused(module: Any) -> bool:
    if not all(hasattr(module, name) for name in _NOTED) or getattr(module, "has_post_expert_norm", False):
        return False
    if not module.has_gate and not callable(getattr(module, "act_fn", None)):
        return False
    first = next((getattr(module, name) for name in _FIRST if isinstance(getattr(module, name, None), nn.Parameter)), None)
    last = getattr(module, _LAST, None)
    if first is None or not isinstance(last, nn.Parameter) or first.dim() != 3 or last.dim() != 3 or len(first) != len(last):
        return False
    rest = {name for name, _ in module.named_parameters()} - {f"{name}{end}" for name in (*_FIRST, _LAST) for end in ("", "_bias")}
    return not rest


def _linear(fused: Any, name: str, number: int) -> nn.Linear:
    weight = getattr(fused, name).detach()[number]
    weight = weight.t() if fused.is_transposed else weight
    bias = getattr(fused, f"{name}_bias", None) if fused.has_bias else None
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    made.weight = nn.Parameter(weight.contiguous().clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach()[number].clone())
    return made.train(fused.training)
