"""A complete export format of one's own: the model's answers on any batch, from a file of its integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.export.base import ExportContext, Runner
from engine.lowering.graph.artifact import load_network, to_bytes
from engine.tasks.base import forward_of

MAGIC = b"TOY1"


def refuses(model: Any, recipe: Any, plan: Any) -> str | None:
    """Models without a parameter have nothing to write."""
    return None if any(True for _ in model.parameters()) else "it has no parameters: leave it out"


def write(context: ExportContext, path: Path) -> str:
    path.write_bytes(MAGIC + to_bytes(context.model.program, context.recipe, context.isa))
    return "a toy"


def load(path: Path, context: ExportContext) -> Runner:
    content = path.read_bytes()
    if not content.startswith(MAGIC):
        raise EngineError(f"{path} is no toy: export it again")
    plain = path.with_suffix(".toy.safetensors")
    plain.write_bytes(content.removeprefix(MAGIC))
    try:
        model = load_network(plain, context.whole.get(""))
    finally:
        plain.unlink()
    return Runner("toy 1", lambda batch: batch.laid_out(), forward_of(model), "toy integers")
