"""Random weights that a network could have: each normalization fits what reaches it, and nothing is zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.models.registry import find

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def settle(model: nn.Module, images: Tensor) -> nn.Module:
    """Give every batch normalization the power of what it reads, and layers that begin at zero small weights.

    The mean stays in: a deep random network that takes it out in every layer amplifies any noise until nothing else is left.
    """

    def fit(norm: Any, given: tuple[Tensor, ...]) -> None:
        norm.running_mean.zero_()
        norm.running_var.copy_(given[0].square().mean([d for d in range(given[0].dim()) if d != 1]))

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.02)
    hooks = [module.register_forward_pre_hook(fit) for module in model.modules() if isinstance(module, BATCH_NORMS)]
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return model


def write(name: str, path: Path, classes: int, images: Tensor) -> Path:
    """A weights file for the model ``name`` on images like ``images`` (N, C, H, W)."""
    torch.manual_seed(0)
    entry, side = find(name), images.shape[-1]
    stem = entry.stem("auto", side)
    model = settle(entry.build(classes, side, stem), images)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path, {"stem": stem})
    return path
