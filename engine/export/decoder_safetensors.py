"""``model.safetensors`` of a decoder, for ``engine.load_quantized``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.export.base import ExportContext, Runner, decoder_runner
from engine.lowering.modules.artifact import to_bytes
from engine.lowering.modules.loaded import load as load_decoder
from engine.lowering.modules.loaded import rounding
from engine.lowering.modules.stepping import of_model
from engine.tasks.decode_timing import Step, step_of


def write(context: ExportContext, path: Path) -> str:
    path.write_bytes(to_bytes(context.model, context.recipe, context.isa))
    return ""


def load(path: Path, context: ExportContext) -> Runner:
    """In float32 on what the integers stand for, with activations rounded as the recipe says."""
    decoder = load_decoder(path).decoder

    def rounded(plain: Step) -> Step:
        def step(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
            with rounding(decoder):
                return plain(ids, cache)

        return step

    label = f"torch {torch.__version__.partition('+')[0]}"
    return decoder_runner(label, "float32 on stored integers", rounded(of_model(decoder.twin)), rounded(step_of(decoder.twin)))
