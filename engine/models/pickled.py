"""Tensors out of a PyTorch file that holds other objects too, without importing or calling anything that the file names.

``torch.load`` reads the container; every name in the pickle is bound here: to what rebuilds a tensor, or to an inert stand-in that
takes whatever it is given and does nothing. A file that names functions of Python's own modules wants to run code, and is refused.
"""

from __future__ import annotations

import _compat_pickle
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

# Of Python's own modules only those whose objects people keep beside weights; what else a file names there is called for its effect.
_KEPT = ("argparse", "pathlib", "datetime", "collections", "types", "enum", "decimal", "fractions", "uuid", "_codecs", "copyreg", "typing")
_BUILTINS = (
    "set", "frozenset", "list", "dict", "tuple", "int", "float", "complex", "bool", "str", "bytes", "bytearray", "slice", "range", "object",
)  # fmt: skip
# What a pickle needs of a helper that makes objects is no object that somebody kept.
_HELPERS = ("copyreg", "_codecs", "builtins", "numpy.core.multiarray", "numpy._core.multiarray")
_REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")


def load(path: Path) -> tuple[Any, tuple[str, ...]]:
    """What the file holds, with stand-ins for what is no tensor and no plain value, and the names of their types.

    Raises ``pickle.UnpicklingError`` for a file that names functions of Python's own modules, and whatever a damaged file makes of
    ``torch.load``.
    """
    unread: dict[str, None] = {}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return _bound(module, name, unread)

    def load_one(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    restricted: Any = SimpleNamespace(Unpickler=Unpickler, load=load_one, __name__="restricted")
    found = torch.load(path, map_location="cpu", pickle_module=restricted, weights_only=False)
    return found, tuple(unread)


def _bound(module: str, name: str, unread: dict[str, None]) -> Any:
    # Protocol 2, which torch.save writes, has the names of Python 2.
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name))
    if (module, name) == ("collections", "OrderedDict"):
        return OrderedDict
    if module == "torch._utils" and name in _REBUILD:
        return _calling(getattr(torch._utils, name))
    if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
        return found
    if (module, name) in (("torch", "Size"), ("torch", "device")):
        return _calling(getattr(torch, name))
    top = module.partition(".")[0]
    if (top == "builtins" and name not in _BUILTINS) or (top != "builtins" and top in sys.stdlib_module_names and top not in _KEPT):
        raise pickle.UnpicklingError(f"the file names {module}.{name}")
    if module not in _HELPERS and not (top == "numpy" and name in ("dtype", "ndarray")):
        unread[f"{module}.{name}"] = None
    return type("StandIn", (_StandIn,), {})


def _calling(function: Callable[..., Any]) -> Callable[..., Any]:
    # A pickle can set attributes of what it has named: these are of no use to anybody else.
    def call(*given: Any) -> Any:
        return function(*given)

    return call


class _StandIn:
    """Takes any arguments, state, items and calls, and keeps none of them."""

    def __new__(cls, *given: Any, **named: Any) -> _StandIn:
        return object.__new__(cls)

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *given: Any, **named: Any) -> _StandIn:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass
