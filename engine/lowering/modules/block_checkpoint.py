"""A finished block on disk, and back into the model bit for bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from engine.errors import EngineError
from engine.lowering.modules.block_linears import Linear
from engine.lowering.modules.progress import MatrixQuantized
from engine.numerics.qtensor import QTensor, from_tensors
from engine.paths import save as save_file
from engine.reading import regular


def write_block(
    path: Path, fingerprint: str, block: nn.Module, found: Sequence[Linear], done: dict[str, QTensor],
    told: Sequence[MatrixQuantized],
) -> None:  # fmt: skip
    """Packed weights for ``done``, what was ``told`` of them, and every other parameter and buffer of ``block`` as it is. Raises
    EngineError where ``path`` cannot be written."""
    tensors = {f"block/{name}": tensor.contiguous().clone() for name, tensor in _rest(block, found, done).items()}
    metas = {}
    for name, weight in done.items():
        tensors |= {f"packed/{name}/{part}": tensor for part, tensor in weight.to_tensors().items()}
        metas[name] = weight.meta()
    notes = json.dumps([asdict(note) for note in told])
    held = {name: tensor.cpu() for name, tensor in tensors.items()}
    save_file(path, save(held, {"fingerprint": fingerprint, "matrices": json.dumps(metas), "told": notes}))


def read_block(
    path: Path, fingerprint: str, block: nn.Module, found: Sequence[Linear]
) -> tuple[dict[str, QTensor], list[MatrixQuantized]] | None:
    """Put the state that ``write_block`` saved into ``block`` and return its packed weights and what was told; None where there is
    no such file or it belongs to another run. Raises EngineError for a file that is damaged."""
    if not path.exists():
        return None
    try:
        regular(path)
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("fingerprint") != fingerprint:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metas = json.loads(about["matrices"])
        done = {name: from_tensors({part: tensors[f"packed/{name}/{part}"] for part in _parts(meta)}, meta) for name, meta in metas.items()}
        told = [MatrixQuantized(**note) for note in json.loads(about["told"])]
        by_name = {matrix.name: matrix for matrix in found}
        with torch.no_grad():
            for name, held in _rest(block, found, done).items():
                held.copy_(tensors[f"block/{name}"])
        for name, weight in done.items():
            by_name[name].write(weight.dequantize().to(by_name[name].held.device))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise EngineError(f"{path} is damaged: delete it, and its block is quantized again") from error
    return done, told


def of_others(paths: Sequence[Path], fingerprint: str) -> int:
    """How many of ``paths`` hold a block that belongs to another run; one that is missing or damaged is no such."""
    found = 0
    for path in paths:
        try:
            regular(path)
            with safe_open(path, "pt") as file:
                found += (file.metadata() or {}).get("fingerprint") != fingerprint
        except (SafetensorError, OSError):
            continue
    return found


def _parts(meta: dict[str, object]) -> tuple[str, ...]:
    return ("packed", "scale") if meta["symmetric"] else ("packed", "scale", "zero")


def _rest(block: nn.Module, found: Sequence[Linear], done: dict[str, QTensor]) -> dict[str, torch.Tensor]:
    packed = {id(matrix.held) for matrix in found if matrix.name in done}
    named = [*block.named_parameters(), *block.named_buffers()]
    return {name: tensor.detach() for name, tensor in named if id(tensor) not in packed}
