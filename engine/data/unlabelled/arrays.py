"""Arrays in files: .npy, .npz, .pt and .safetensors. Nothing in them is ever run."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.data.items import Items, MemoryItems
from engine.errors import EngineError
from engine.plain_text import one_line

SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors")
Named = dict[str, Tensor]
"""The tensors of a file by name, in order; names that are places are ``0``, ``1``, …"""


def read(path: Path) -> Named:
    """The tensors of a file, floats as float32 and integers as int64. Raises EngineError, in one line, for a file that cannot be read,
    holds objects, complex numbers, or numbers that are not finite."""
    try:
        raw = _READERS[path.suffix.lower()](path)
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"{path} cannot be read as arrays ({one_line(error, 100) or type(error).__name__}): {_INSTEAD}") from error
    found = {name: _tensor(value, path, name) for name, value in raw.items()}
    if not found:
        raise EngineError(f"{path} holds no arrays: {_INSTEAD}")
    return found


_INSTEAD = "save plain arrays, as numpy.save, numpy.savez, torch.save of tensors, or safetensors do"


def _npy(path: Path) -> Mapping[str, Any]:
    return {"0": np.load(path, allow_pickle=False)}


def _npz(path: Path) -> Mapping[str, Any]:
    with np.load(path, allow_pickle=False) as held:
        names = [name.removesuffix(".npy") for name in held.files]
        # numpy's own names for arrays that were given by place.
        places = all(name == f"arr_{i}" for i, name in enumerate(names))
        return {str(i) if places else name: held[key] for i, (name, key) in enumerate(zip(names, held.files, strict=True))}


def _pt(path: Path) -> Mapping[str, Any]:
    held = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(held, Tensor):
        return {"0": held}
    if isinstance(held, Mapping):
        return {str(name): value for name, value in held.items()}
    if isinstance(held, list | tuple):
        return {str(i): value for i, value in enumerate(held)}
    raise EngineError(f"{path} holds a {type(held).__name__}: give a tensor, or a tuple or dict of tensors, one for each input")


def _safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


_READERS = {".npy": _npy, ".npz": _npz, ".pt": _pt, ".pth": _pt, ".safetensors": _safetensors}


def _tensor(value: Any, path: Path, name: str) -> Tensor:
    said = f"{path}{'' if name == '0' else f' ({one_line(name, 40)})'}"
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            raise EngineError(f"{said} holds {value.dtype}: give real numbers")
        if value.dtype.kind == "u" and value.dtype.itemsize > 1:
            value = value.astype(np.int64)
        value = torch.from_numpy(np.array(value.astype(value.dtype.newbyteorder("="), copy=False)))
    if not isinstance(value, Tensor) or value.is_complex() or value.layout != torch.strided:
        what = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__
        raise EngineError(f"{said} holds {what}: {_INSTEAD}")
    if value.dtype == torch.bool:
        return value
    tensor = value.float() if value.is_floating_point() or value.dtype == torch.uint8 else value.long()
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise EngineError(f"{said} holds NaN or infinity: remove those items")
    return tensor


def said_of(paths: Sequence[Path], normalized: bool) -> list[str]:
    """What is to be told of the numbers of the first file."""
    try:
        raw = _READERS[paths[0].suffix.lower()](paths[0])
    except Exception:
        return []
    kinds = {str(value.dtype).removeprefix("torch.") for value in raw.values() if hasattr(value, "dtype")}
    told = []
    if "uint8" in kinds and not normalized:
        told.append("bytes are given to the model as the numbers 0 to 255: --mean and --std normalize them as pixels")
    if wide := kinds & {"float64", "float16", "bfloat16"}:
        told.append(f"{' and '.join(sorted(wide))} is read as float32")
    return told


def counted(found: Named, path: Path) -> int:
    """How many items the arrays of a file hold. Raises EngineError where they differ, or where there are none."""
    sizes = {name: len(x) if x.dim() else 0 for name, x in found.items()}
    if len(set(sizes.values())) > 1:
        some = ", ".join(f"{one_line(name, 40)} {size}" for name, size in sizes.items())
        raise EngineError(f"the arrays of {path} count different items ({some}): the first dimension of each must count them")
    count = next(iter(sizes.values()))
    if not count:
        raise EngineError(f"{path} holds no items: the first dimension of each array counts them")
    return count


def in_order(found: Named) -> Any:
    """The inputs by place: one tensor, or a tuple."""
    return next(iter(found.values())) if len(found) == 1 else tuple(found.values())


@dataclass(frozen=True, eq=False)
class ManyArrays:
    """Items of several files one after the other; those of one file can be read together, and those of files of equal shapes."""

    parts: tuple[MemoryItems, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, parts: Sequence[MemoryItems]) -> ManyArrays:
        starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        return cls(tuple(parts), tuple(starts))

    def __len__(self) -> int:
        return self.starts[-1]

    def _place(self, place: int) -> tuple[MemoryItems, int]:
        part = int(np.searchsorted(self.starts, place, side="right")) - 1
        return self.parts[part], place - self.starts[part]

    def read(self, places: Sequence[int]) -> Items:
        from torch.utils._pytree import tree_map

        found = [part.read([at]).inputs for part, at in map(self._place, places)]
        return Items(tree_map(lambda *some: torch.cat(some), *found), [None] * len(places))

    def kind(self, place: int) -> Hashable:
        part, _ = self._place(place)
        return tuple(tuple(x.shape[1:]) for x in torch.utils._pytree.tree_leaves(part.items.inputs))
