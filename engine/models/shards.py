"""The tensors of a folder's safetensors files, read one at a time: headers are looked at, weights are mapped when they are asked for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, one_line
from engine.models.transformers_folder import AGAIN, whole_safetensors

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# Of each tensor so many bytes at both ends tell checkpoints apart without reading them whole.
_ENDS = 4096


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its file, its type as safetensors has it, its shape, and the bytes it begins and ends at."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Shards:
    """The tensors of ``files`` by name. Nothing of them is in memory."""

    files: tuple[Path, ...]
    tensors: Mapping[str, Stored]

    @property
    def numbers(self) -> int:
        """Of all tensors together."""
        return sum(stored.numbers for stored in self.tensors.values())

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Each of ``names`` as float32 in memory of its own. A file is mapped only while its tensors are read, so that what was read
        does not count as memory. Raises EngineError for a file that has become unreadable, and for NaN and infinity."""
        from safetensors import SafetensorError, safe_open

        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.tensors[name].file, []).append(name)
        for path, several in by_file.items():
            whole_safetensors(path)
            try:
                with safe_open(path, "pt") as file:
                    for name in several:
                        tensor = file.get_tensor(name).to(torch.float32, copy=True)
                        # A sum that is finite has no other terms; one that is not may have overflowed.
                        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
                            raise EngineError(f"{path} holds NaN or infinity in {name}: use another checkpoint")
                        yield name, tensor
            except (SafetensorError, OSError) as error:
                raise EngineError(f"{path} cannot be read ({one_line(error, 120)}): {AGAIN}") from error

    def fingerprint(self) -> str:
        """16 hex digits of names, types, shapes and the ends of each tensor's bytes."""
        digest = hashlib.sha256()
        with ExitStack() as stack:
            open_files = {path: stack.enter_context(path.open("rb")) for path in self.files}
            for name, stored in sorted(self.tensors.items()):
                digest.update(f"{name} {stored.dtype} {stored.shape}".encode())
                for place in (stored.begin, max(stored.end - _ENDS, stored.begin)):
                    open_files[stored.file].seek(place)
                    digest.update(open_files[stored.file].read(min(_ENDS, stored.end - place)))
        return digest.hexdigest()[:16]


def shards_of(files: Iterable[Path]) -> Shards:
    """The tensors of ``files``. Raises EngineError for a file that is not whole, that is no safetensors file, or that holds a tensor which
    another holds too."""
    found: dict[str, Stored] = {}
    paths = tuple(files)
    for path in paths:
        if path.suffix != ".safetensors":
            raise EngineError(f"{path} is no safetensors file, and no other is read block by block: save the model with save_pretrained")
        whole_safetensors(path)
        for name, part in _header(path):
            if name in found:
                raise EngineError(f"{path} and {found[name].file.name} both hold {name}: {AGAIN}")
            found[name] = part
    return Shards(paths, found)


def _header(path: Path) -> Iterator[tuple[str, Stored]]:
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(length))
        for name, part in header.items():
            if name != "__metadata__":
                begin, end = (8 + length + int(place) for place in part["data_offsets"])
                yield name, Stored(path, str(part["dtype"]), tuple(int(size) for size in part["shape"]), begin, end)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{path} is not a whole safetensors file: {AGAIN}") from error
