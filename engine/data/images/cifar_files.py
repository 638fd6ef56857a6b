"""Read CIFAR-10's pickled files without trusting them.

The files are pickles, and a pickle can run code and build crafted objects. Here every name a file may import is bound
to an inert stand-in that only records what it was given, so neither Python nor numpy acts on the file's word: the
arrays are then built from the recorded bytes after their type, shape and length have been checked.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.data.images.base import MemorySplit, check_labels
from engine.errors import EngineError

PIXELS = 3 * 32 * 32
REMEDY = "unpack the original cifar-10-python.tar.gz again"
_INTEGERS = ("u1", "i1", "i2", "i4", "i8")
_BYTE_ORDERS = ("|", "=", "<", ">")


class _Type:
    """Stands for ``numpy.dtype``."""

    def __init__(self, code: object = None, *_flags: object) -> None:
        self.code = _text(code)
        self.order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = _text(state[1])


class _Array:
    """Stands for ``numpy.ndarray``, filled by ``__setstate__`` (protocols up to 4) or by ``_from_buffer`` (5)."""

    shape: tuple[int, ...] = ()
    kind: _Type | None = None
    raw: bytes = b""
    by_column: bool = False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, kind, by_column, raw = state
        self.shape, self.kind, self.by_column, self.raw = tuple(shape), kind, bool(by_column), _bytes(raw)

    def values(self) -> npt.NDArray[Any]:
        """The numbers, row by row. ``ValueError`` for any type but plain integers or a length that does not fit."""
        if not isinstance(self.kind, _Type) or self.kind.code not in _INTEGERS or self.kind.order not in _BYTE_ORDERS:
            raise ValueError("an array in it does not hold plain integers")
        flat: npt.NDArray[Any] = np.frombuffer(self.raw, dtype=self.kind.order + self.kind.code)
        return flat.reshape(self.shape[::-1]).T if self.by_column else flat.reshape(self.shape)


def _reconstruct(*_arguments: object) -> _Array:
    return _Array()


def _from_buffer(raw: object, kind: _Type, shape: tuple[int, ...], order: object) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", raw))
    return array


def _bytes(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode("latin1")
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    raise ValueError("an array in it does not hold bytes")


def _text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _encode(text: str, _encoding: str = "latin1", *_errors: object) -> bytes:
    return text.encode("latin1")


_NUMPY_CORES = ("numpy.core", "numpy._core")
_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    **{(f"{core}.multiarray", "_reconstruct"): _reconstruct for core in _NUMPY_CORES},
    **{(f"{core}.numeric", "_frombuffer"): _from_buffer for core in _NUMPY_CORES},
}


class _Reader(pickle.Unpickler):
    path: Path

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _STAND_INS:
            raise EngineError(f"{self.path} wants to import {module}.{name}: not a CIFAR-10 file; nothing of it was run, {REMEDY}")
        return _STAND_INS[module, name]


def _read_dict(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise EngineError(f"{path} is missing: {REMEDY}")
    try:
        with path.open("rb") as file:
            # Python 2 wrote the original files: as bytes, their pixels need no decoding and no second copy.
            reader = _Reader(file, encoding="bytes")
            reader.path = path
            content = reader.load()
    except EngineError:
        raise
    except Exception as error:  # a damaged pickle can fail as anything, from EOFError to MemoryError
        raise EngineError(f"{path} is cut short or damaged ({_short(error)}): {REMEDY}") from error
    if not isinstance(content, dict):
        raise EngineError(f"{path} holds a {type(content).__name__} where CIFAR-10 has a dict: {REMEDY}")
    return {_text(key): value for key, value in content.items()}


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:100]


def read_classes(path: Path) -> tuple[str, ...]:
    """The class names in ``batches.meta``; ``EngineError`` naming the file when there are none."""
    names = _read_dict(path).get("label_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str | bytes) for name in names):
        raise EngineError(f"{path} has no list of class names under label_names: {REMEDY}")
    return tuple(_text(name) for name in names)


def read_batch(path: Path, classes: int) -> MemorySplit:
    """One batch file of any number of rows: images uint8 (N, 3, 32, 32) and labels int64 (N,) in ``range(classes)``.

    ``EngineError`` naming the file when it is missing, damaged, imports anything, or holds other shapes or labels.
    """
    content = _read_dict(path)
    try:
        pixels = _values(content["data"])
        labels = _values(content["labels"])
    except KeyError as error:
        raise EngineError(f"{path} has no entry {error}: {REMEDY}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise EngineError(f"{path} is damaged ({_short(error)}): {REMEDY}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        raise EngineError(f"{path} holds {pixels.dtype} {pixels.shape} where CIFAR-10 has uint8 (N, {PIXELS}): {REMEDY}")
    if labels.dtype.kind != "i" or labels.shape != pixels.shape[:1]:
        raise EngineError(f"{path} holds {labels.dtype} {labels.shape} labels for {len(pixels)} images: {REMEDY}")
    split = MemorySplit(_tensor(pixels).view(-1, 3, 32, 32), _tensor(labels.astype(np.int64)))
    check_labels(split.labels, classes, str(path))
    return split


def _values(entry: object) -> npt.NDArray[Any]:
    if isinstance(entry, _Array):
        return entry.values()
    if isinstance(entry, list) and all(isinstance(value, int) for value in entry):
        return np.array(entry, dtype=np.int64)
    raise ValueError(f"a {type(entry).__name__} where numbers should be")


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(values, order="C"))
