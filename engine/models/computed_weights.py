"""Weights that a module computes from others at every call."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves


def settle(model: nn.Module) -> None:
    """Weights that a parametrization or a hook computes (``torch.nn.utils``: weight and spectral normalization, of either form,
    pruning, and one's own parametrizations) become the values that they have now: in eval mode they do not change, and a layer can
    then be quantized as any other. Changes ``model``, which is in eval mode and computes the same."""
    for module in list(model.modules()):
        held = getattr(module, "parametrizations", None) if is_parametrized(module) else None
        if held is not None:
            _with_class_of_its_own(module)
        for weight in list(held or ()):
            remove_parametrizations(module, str(weight), leave_parametrized=True)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]


def _with_class_of_its_own(module: nn.Module) -> None:
    """A copy of a parametrized module shares the class that torch made for it, from which the weight would be taken away for both."""
    shared = type(module)
    held = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, held)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy. A weight that a hook has computed belongs to the graph of its gradient, which cannot be copied: it is computed
    anew without one, as the hook does before every call; so is any other tensor that a module keeps of its last call."""
    with torch.no_grad():
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, WeightNorm):
                    setattr(module, hook.name, hook.compute_weight(module))
                elif isinstance(hook, SpectralNorm):
                    setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
        computed: dict[int, Any] = {}
        for module in model.modules():
            held = [value for value in tree_leaves(dict(vars(module))) if isinstance(value, Tensor) and not value.is_leaf]
            computed |= {id(value): value.detach().clone() for value in held}
        return copy.deepcopy(model, computed)
