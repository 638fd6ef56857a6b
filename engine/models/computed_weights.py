"""Weights that a module computes from others at every call."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils import remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def settle(model: nn.Module) -> None:
    """Weights that a parametrization or a hook computes (``torch.nn.utils``: weight and spectral normalization, of either form, and
    one's own parametrizations) become the values that they have now: in eval mode they do not change, and a layer can then be
    quantized as any other. Changes ``model``, which is in eval mode and computes the same."""
    for module in list(model.modules()):
        held = getattr(module, "parametrizations", None) if is_parametrized(module) else None
        for weight in list(held or ()):
            remove_parametrizations(module, str(weight), leave_parametrized=True)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy. A weight that a hook has computed belongs to the graph of its gradient, which cannot be copied: it is computed
    anew without one, as the hook does before every call."""
    with torch.no_grad():
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, WeightNorm):
                    setattr(module, hook.name, hook.compute_weight(module))
                elif isinstance(hook, SpectralNorm):
                    setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
        return copy.deepcopy(model)
