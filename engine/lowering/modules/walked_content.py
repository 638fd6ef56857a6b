"""``model.safetensors`` of a decoder that was walked block by block: put together from the files of its blocks, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import EngineError
from engine.lowering.modules.artifact import buffers
from engine.lowering.modules.header import header_of
from engine.lowering.modules.quantized import rest_names
from engine.lowering.modules.walk import Rounded
from engine.models.anatomy import blocks_of
from engine.models.unread import Source, in_block
from engine.numerics.tensor_file import LARGEST, Pending, size_of, write_files


@dataclass(frozen=True)
class WalkedContent:
    """The files of what a walk came to; ``len`` is their bytes. ``model`` is the decoder that was walked, without its weights."""

    model: Any
    source: Source
    found: Rounded
    recipe_yaml: str
    isa: str
    largest: int = LARGEST

    def __len__(self) -> int:
        return size_of(self._tensors, self._about, self.largest)

    def write(self, directory: Path) -> tuple[str, ...]:
        """``model.safetensors``, or shards with an index, in ``directory``; their names, the one to open first. Raises EngineError."""
        return write_files(directory, self._tensors, self._about, self.largest)

    @cached_property
    def _about(self) -> dict[str, str]:
        return {"qtui": json.dumps(header_of(self.model, self.found.matrices, self.recipe_yaml, self.isa))}

    @cached_property
    def _tensors(self) -> dict[str, Pending]:
        """Around the blocks, then the blocks in their order."""
        made: dict[str, Pending] = {}
        for path, matrix in self.found.outside.items():
            if matrix.tied is None:
                made |= {f"matrix/{path}/{part}": Pending.of(tensor) for part, tensor in matrix.weight.to_tensors().items()}
        made |= {f"buffer/{name}": Pending.of(tensor) for name, tensor in buffers(self.model).items()}
        rest = rest_names(self.model, self.found.matrices)
        path, blocks = blocks_of(self.model)
        inside = [set(in_block(self.model, number)) for number in range(len(blocks))]
        within = set().union(*inside)
        known = dict(self.model.named_parameters())
        for name in rest:
            if name not in within:
                made[f"rest/{name}"] = Pending(known[name].dtype, tuple(known[name].shape), self._original(name))
        wanted = set(rest)
        for number, file in enumerate(self.found.files):
            for name, kept in _of_block(file, f"{path}.{number}", wanted):
                made[name] = kept
        return made

    def _original(self, name: str) -> Callable[[], Tensor]:
        return lambda: next(tensor for _, tensor in self.source.shards.read([self.source.names[name]]))


def _of_block(file: Path, path: str, rest: set[str]) -> Iterator[tuple[str, Pending]]:
    """The tensors of a finished block's file by the names that they are to have."""
    try:
        with safe_open(file, "pt") as held:
            for stored in held.keys():  # noqa: SIM118
                kind, _, name = stored.partition("/")
                if kind == "block" and f"{path}.{name}" not in rest:
                    continue
                final = f"matrix/{name}" if kind == "packed" else f"rest/{path}.{name}"
                tensor = held.get_tensor(stored)
                yield final, Pending(tensor.dtype, tuple(tensor.shape), _reading(file, stored))
    except (SafetensorError, OSError) as error:
        raise EngineError(f"{file} is damaged: delete it, and its block is quantized again") from error


def _reading(file: Path, name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        with safe_open(file, "pt") as held:
            found: Tensor = held.get_tensor(name)
        return found

    return read
