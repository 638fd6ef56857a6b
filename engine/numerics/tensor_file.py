"""safetensors files written tensor by tensor: shapes and types are known before, values are asked for as they are written.

The format is that of https://huggingface.co/docs/safetensors: eight bytes with the header's length, JSON, and the tensors behind each
other without gaps. Larger elements come first, so that each tensor lies where its type can be mapped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from engine.paths import fill_atomic, unwritable
from engine.reading import INDEX

# Loaders of published models take files of that many bytes and less.
LARGEST = 5_000_000_000
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


@dataclass(frozen=True)
class Pending:
    """A tensor that is to be written: ``read`` gives it when its turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> Pending:
        """One that is in memory."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor)

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def divided(tensors: Mapping[str, Pending], largest: int = LARGEST) -> list[dict[str, Pending]]:
    """``tensors``, in their order, in parts of at most ``largest`` bytes; a tensor that is larger is one by itself."""
    parts: list[dict[str, Pending]] = [{}]
    size = 0
    for name, pending in tensors.items():
        if parts[-1] and size + pending.bytes > largest:
            parts.append({})
            size = 0
        parts[-1][name] = pending
        size += pending.bytes
    return parts


def write_files(directory: Path, tensors: Mapping[str, Pending], about: Mapping[str, str], largest: int = LARGEST) -> tuple[str, ...]:
    """``model.safetensors`` in ``directory``, or where it would be over ``largest`` bytes shards of at most so many with an index; their
    names, the one to open first. The index is written last: without it there is no model. Raises EngineError where one cannot be
    written, and leaves none of them then."""
    parts = divided(tensors, largest)
    names = [f"model-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
    names = ["model.safetensors"] if len(parts) == 1 else names
    done: list[Path] = []
    try:
        for name, part in zip(names, parts, strict=True):
            write_file(directory / name, part, about)
            done.append(directory / name)
        if len(parts) > 1:
            placed = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
            total = sum(pending.bytes for pending in tensors.values())
            content = json.dumps({"metadata": {"total_size": total}, "weight_map": placed}, indent=2, sort_keys=True) + "\n"
            _whole(directory / INDEX, lambda file: file.write(content.encode()))
    except BaseException:
        for path in done:
            path.unlink(missing_ok=True)
        raise
    return (*((INDEX,) if len(parts) > 1 else ()), *names)


def write_file(path: Path, tensors: Mapping[str, Pending], about: Mapping[str, str]) -> None:
    """One file, whole or not at all. Raises EngineError where it cannot be written."""
    header, ordered = _header(tensors, about)

    def write(file: BinaryIO) -> None:
        file.write(header)
        for name in ordered:
            tensor = tensors[name].read().detach().cpu().contiguous()
            if tensor.dtype != tensors[name].dtype or tuple(tensor.shape) != tensors[name].shape:
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}")
            if tensor.numel():
                file.write(tensor.flatten().view(torch.uint8).numpy().data)

    _whole(path, write)


def _header(tensors: Mapping[str, Pending], about: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """What stands before the tensors, and the order in which they follow."""
    entries: dict[str, object] = {"__metadata__": dict(about)}
    place = 0
    ordered = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    for name in ordered:
        pending = tensors[name]
        entries[name] = {"dtype": _TYPES[pending.dtype], "shape": [*pending.shape], "data_offsets": [place, place + pending.bytes]}
        place += pending.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, ordered


def size_of(tensors: Mapping[str, Pending], about: Mapping[str, str], largest: int = LARGEST) -> int:
    """The bytes of the files that ``write_files`` makes, without those of an index."""
    return sum(len(_header(part, about)[0]) + sum(pending.bytes for pending in part.values()) for part in divided(tensors, largest))


def _whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    try:
        fill_atomic(path, write)
    except OSError as error:
        raise unwritable(path, error) from error
