"""Random weights that a network could have: each normalization fits what reaches it, and nothing is zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from engine.models.registry import find
from engine.models.weights_file import load_into

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# What a residual branch adds to its shortcut. Training begins near 0 and stays small (Goyal 2017, arXiv:1706.02677, section 5.1).
BRANCH = 0.3


def settle(model: nn.Module, images: Tensor) -> nn.Module:
    """Give every batch normalization the power of what it reads, and layers that begin at zero small weights.

    The mean stays in: a deep random network that takes it out in every layer amplifies any noise until nothing else is left.
    So does one that brings channels without a signal to full power.
    """

    def fit(norm: Any, given: tuple[Tensor, ...]) -> None:
        norm.running_mean.zero_()
        power = given[0].square().mean([d for d in range(given[0].dim()) if d != 1])
        norm.running_var.copy_(power.clamp(min=power.mean().item() / 10))

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.02)
    hooks = [module.register_forward_pre_hook(fit) for module in model.modules() if isinstance(module, BATCH_NORMS)]
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return model


def quiet_branches(model: nn.Module) -> nn.Module:
    """Scale the normalization that ends a residual branch: a hundred branches of full power bury the image in their noise."""
    graph = fx.symbolic_trace(model)
    for node in graph.graph.nodes:
        if getattr(node.target, "__name__", "") in ("add", "iadd"):
            ends = [end for end in map(_norm_before, node.args) if end is not None]
            if ends:
                nn.init.constant_(graph.get_submodule(ends[0]).weight, BRANCH)  # type: ignore[arg-type]
    return model


def _norm_before(node: object) -> str | None:
    """The path of the batch normalization whose result ``node`` is, through what does nothing outside training."""
    while isinstance(node, fx.Node) and getattr(node.target, "__name__", "") == "stochastic_depth":
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    module = node.graph.owning_module.get_submodule(str(node.target))  # type: ignore[union-attr]
    return str(node.target) if isinstance(module, BATCH_NORMS) else None


def write(name: str, path: Path, classes: int, images: Tensor) -> Path:
    """A weights file for the model ``name`` on images like ``images`` (N, C, H, W)."""
    torch.manual_seed(0)
    entry, side = find(name), images.shape[-1]
    stem = entry.stem("auto", side)
    model = settle(quiet_branches(entry.build(classes, side, stem)), images)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path, {"stem": stem})
    return path


def load(name: str, path: Path, classes: int, side: int) -> nn.Module:
    """The network that ``write`` wrote, in eval mode."""
    entry = find(name)
    model = entry.build(classes, side, entry.stem("auto", side)).eval()
    load_into(model, path, name)
    return model
