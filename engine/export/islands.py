"""Formats that hold one graph: none of a model whose forward is Python between its islands."""

from __future__ import annotations

from pathlib import Path

from engine.errors import EngineError
from engine.export.base import ExportContext, Runner


def write(context: ExportContext, path: Path) -> str:
    count = len(context.model.islands)
    raise EngineError(
        f"the model's forward could not be traced, so there is no one graph to write: Python runs between its {count} "
        f"island{'' if count == 1 else 's'}; model.safetensors with engine.load_quantized(DIR, model=factory()) holds it"
    )


def load(path: Path, context: ExportContext) -> Runner:
    raise EngineError(f"{path.name} cannot be of a model that is lowered in islands")
