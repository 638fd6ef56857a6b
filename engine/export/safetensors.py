"""``model.safetensors``: integers, scales and recipe, for ``engine.load_quantized``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from engine.export.base import Given, Runner
from engine.lowering.graph.artifact import load_network, to_bytes
from engine.models.memory import laid_out


def write(given: Given, path: Path) -> None:
    path.write_bytes(to_bytes(given.model.program, given.recipe, given.isa))


def load(path: Path, given: Given, threads: int) -> Runner:
    """On this machine's integer kernels; ``threads`` are torch's own."""
    model = load_network(path, _whole(given))
    kernels = ", ".join(sorted({kernel for kernel, _ in model.placement.values()})) or "torch fp32 on stored integers"
    label = f"torch {torch.__version__.partition('+')[0]}"
    return Runner(label, lambda *inputs: laid_out(inputs), lambda inputs: model.flat(*inputs), kernels)


def _whole(given: Given) -> nn.Module | None:
    """The model whose modules ``given.whole`` names."""
    return given.whole.get("")
