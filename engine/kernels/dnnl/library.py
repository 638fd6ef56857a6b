"""Finds and loads oneDNN's shared library, and gives its C functions their types.

torch holds a oneDNN of its own, hidden inside, and makes each primitive anew at every call: thirty to forty microseconds
that a small layer waits. The C interface (https://uxlfoundation.github.io/oneDNN, "C API") lets a primitive be kept. Its binary
interface is stable within a major version.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

from engine.errors import EngineError

PACKAGE = "onednn-cpu-gomp"
NAME = "libdnnl.so.3"
MAJOR = 3
_OPENMP = 2
_CPU = 1
_IN_ORDER = 1

Dims = c_int64 * 12

_STATUS = {
    1: "out of memory", 2: "invalid arguments", 3: "not implemented", 4: "the last implementation", 5: "runtime error",
    6: "not required", 7: "invalid graph", 8: "invalid operation", 9: "invalid shape", 10: "invalid data type",
}  # fmt: skip

_FORWARD = (POINTER(c_void_p), c_void_p, c_int)
_PADDED = (c_void_p,) * 4
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "engine_create": (POINTER(c_void_p), c_int, c_size_t),
    "stream_create": (POINTER(c_void_p), c_void_p, c_uint),
    "memory_desc_create_with_strides": (POINTER(c_void_p), c_int, c_void_p, c_int, c_void_p),
    "memory_desc_create_with_tag": (POINTER(c_void_p), c_int, c_void_p, c_int, c_int),
    "memory_create": (POINTER(c_void_p), c_void_p, c_void_p, c_void_p),
    "memory_set_data_handle": (c_void_p, c_void_p),
    "primitive_attr_create": (POINTER(c_void_p),),
    "primitive_attr_set_scales_mask": (c_void_p, c_int, c_int),
    "primitive_attr_set_zero_points_mask": (c_void_p, c_int, c_int),
    "primitive_attr_set_post_ops": (c_void_p, c_void_p),
    "post_ops_create": (POINTER(c_void_p),),
    "post_ops_append_sum": (c_void_p, c_float, c_int32, c_int),
    "post_ops_append_eltwise": (c_void_p, c_int, c_float, c_float),
    "post_ops_append_binary": (c_void_p, c_int, c_void_p),
    "convolution_forward_primitive_desc_create": (*_FORWARD, c_int, *_PADDED, *_PADDED, c_void_p),
    "matmul_primitive_desc_create": (POINTER(c_void_p), c_void_p, *_PADDED, c_void_p),
    "pooling_forward_primitive_desc_create": (*_FORWARD, c_int, c_void_p, c_void_p, *(c_void_p,) * 5, c_void_p),
    "binary_primitive_desc_create": (*_FORWARD, c_void_p, c_void_p, c_void_p, c_void_p),
    "reorder_primitive_desc_create": (POINTER(c_void_p), c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    "primitive_create": (POINTER(c_void_p), c_void_p),
    "primitive_execute": (c_void_p, c_void_p, c_int, c_void_p),
}


class _Version(Structure):
    _fields_ = [
        ("major", c_int), ("minor", c_int), ("patch", c_int), ("hash", c_char_p), ("cpu_runtime", c_uint), ("gpu_runtime", c_uint),
    ]  # fmt: skip


class Library:
    """oneDNN with an engine and a stream for the processor. Calls raise EngineError with oneDNN's reason."""

    def __init__(self, path: Path) -> None:
        # torch first: both must share one OpenMP, else each has threads of its own.
        import torch

        self._torch = torch
        self.shared = self._dll = ctypes.CDLL(str(path))
        version = self._typed("version", (), POINTER(_Version))().contents
        self.version = f"{version.major}.{version.minor}.{version.patch}"
        if version.major != MAJOR or version.cpu_runtime != _OPENMP:
            raise EngineError(f"{path} is oneDNN {self.version} with another interface or without OpenMP")
        self._functions = {name: self._typed(name, types, c_int) for name, types in FUNCTIONS.items()}
        self.execute = self._functions["primitive_execute"]
        self.set_handle = self._functions["memory_set_data_handle"]
        self.query_md = self._typed("primitive_desc_query_md", (c_void_p, c_int, c_int), c_void_p)
        self.size_of = self._typed("memory_desc_get_size", (c_void_p,), c_size_t)
        self.equal = self._typed("memory_desc_equal", (c_void_p, c_void_p), c_int)
        kinds = ("memory_desc", "memory", "primitive_attr", "post_ops", "primitive_desc", "primitive")
        self.destroy = {kind: self._typed(f"{kind}_destroy", (c_void_p,), c_int) for kind in kinds}
        self._set_threads = self._dll.omp_set_num_threads
        self.engine = self.make("engine_create", _CPU, 0)
        self.stream = self.make("stream_create", self.engine, _IN_ORDER)

    def _typed(self, name: str, types: tuple[Any, ...], result: Any) -> Any:
        function = getattr(self._dll, f"dnnl_{name}")
        function.argtypes, function.restype = types, result
        return function

    def call(self, name: str, *arguments: Any) -> None:
        status = self._functions[name](*arguments)
        if status:
            raise EngineError(f"oneDNN {self.version}: {name}: {_STATUS.get(status, status)}")

    def make(self, name: str, *arguments: Any) -> int:
        """The handle that a function writes to its first argument."""
        handle = c_void_p()
        self.call(name, byref(handle), *arguments)
        assert handle.value is not None
        return handle.value

    def match_threads(self) -> int:
        """oneDNN computes with as many threads as torch does; gives their number."""
        threads = self._torch.get_num_threads()
        self._set_threads(threads)
        return threads


def dims(values: Any) -> Any:
    return Dims(*values)


def path() -> Path | None:
    """The library of the installed package, or None."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = next((file for file in files if file.name == NAME), None)
    return None if found is None else Path(str(found.locate())).resolve()


@lru_cache(maxsize=1)
def library() -> Library:
    """Loaded once. Raises EngineError where there is none or it does not load."""
    where = path()
    if where is None:
        raise EngineError(f"the package {PACKAGE} is not installed")
    try:
        return Library(where)
    except (OSError, AttributeError) as error:
        raise EngineError(f"{where.name} of {PACKAGE} does not load: {error}") from error
