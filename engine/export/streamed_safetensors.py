"""``model.safetensors`` of a decoder that is larger than memory: read back block by block, on the integer kernels of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.export.base import ExportContext, Logits, Runner
from engine.lowering.modules.artifact import check, opened, told_of
from engine.lowering.modules.by_block import logits_by_block
from engine.lowering.modules.streamed import Streamed
from engine.lowering.modules.walk import key


def write(context: ExportContext, path: Path) -> str:
    raise EngineError("the run itself writes it, from the files of the blocks")


def load(path: Path, context: ExportContext) -> Runner:
    """The file at once on all windows that files are compared on: the blocks are read in one walk."""
    streamed: Streamed = context.model
    file = opened(path)
    check(file)
    with told_of(path):
        windows = [ids[None] for ids in streamed.compared]
        found = dict(zip((key(ids[0]) for ids in windows), logits_by_block(file, windows, streamed.machine), strict=True))

    def call(ids: Tensor) -> Any:
        logits = found.get(key(ids[0]))
        if logits is None:
            raise EngineError("a file that is read block by block gives the logits of the windows that files are compared on")
        return Logits(logits)

    label = f"torch {torch.__version__.partition('+')[0]}"
    return Runner(label, lambda batch: batch.kwargs["input_ids"], call, "the run's own kernels, block by block")
