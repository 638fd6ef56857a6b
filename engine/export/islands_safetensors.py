"""``model.safetensors`` of a model with islands, for ``engine.load_quantized``."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.export.base import ExportContext, Runner
from engine.lowering.islands.artifact import load as load_islands
from engine.lowering.islands.artifact import to_bytes
from engine.tasks.base import forward_of


def write(context: ExportContext, path: Path) -> str:
    path.write_bytes(to_bytes(context.model, context.recipe, context.isa))
    return ""


def load(path: Path, context: ExportContext) -> Runner:
    """On this machine's integer kernels, and torch between them."""
    model = load_islands(path, context.whole.get(""))
    kernels = ", ".join(sorted({kernel for kernel, _ in model.placement.values()})) or "torch fp32 on stored integers"
    label = f"torch {torch.__version__.partition('+')[0]}"
    return Runner(label, lambda batch: batch.laid_out(), forward_of(model), kernels)
