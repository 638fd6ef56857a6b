"""What a model returns, in a form that every part of a run can take apart: tensors in tuples, lists and dicts."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, cast

from torch import Tensor
from torch.utils import _pytree

_DEPTH = 8


class Outputs(dict[str, Any]):
    """The fields of a dataclass or of any other object that a model returns: by key, as attributes, and by place, where fields that
    are None do not count (as in ``ModelOutput`` of transformers)."""

    def __getattr__(self, name: str) -> Any:
        try:
            return dict.__getitem__(self, name)
        except KeyError:
            raise AttributeError(f"the outputs have no {name!r}: they have {', '.join(self)}") from None

    def __getitem__(self, key: Any) -> Any:
        return self.to_tuple()[key] if isinstance(key, int | slice) else super().__getitem__(key)

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(value for value in self.values() if value is not None)


def _fields(outputs: Outputs) -> tuple[list[Any], list[str]]:
    return list(outputs.values()), list(outputs)


def _of_fields(values: Iterable[Any], names: list[str]) -> Outputs:
    return Outputs(zip(names, values, strict=True))


def _keyed_fields(outputs: Outputs) -> tuple[list[tuple[_pytree.KeyEntry, Any]], list[str]]:
    return [(_pytree.MappingKey(name), value) for name, value in outputs.items()], list(outputs)


_pytree.register_pytree_node(
    Outputs, _fields, _of_fields, serialized_type_name="engine.tasks.outputs.Outputs", flatten_with_keys_fn=_keyed_fields
)


def normalized(raw: Any, depth: int = _DEPTH) -> Any:
    """``raw`` in tuples, named tuples, lists, dicts and ``Outputs``; leaves are as they are. Tensors inside of an object that is none of
    these become fields of ``Outputs``."""
    if isinstance(raw, Tensor) or raw is None or isinstance(raw, bool | int | float | str) or depth == 0:
        return raw
    if isinstance(raw, tuple) and hasattr(raw, "_fields"):
        return named(tuple(raw._fields))(*(normalized(value, depth - 1) for value in raw))
    if isinstance(raw, tuple | list):
        kind = tuple if isinstance(raw, tuple) else list
        return kind(normalized(value, depth - 1) for value in raw)
    if dataclasses.is_dataclass(raw) and not isinstance(raw, type):
        return Outputs({field.name: normalized(getattr(raw, field.name), depth - 1) for field in dataclasses.fields(raw)})
    if isinstance(raw, Outputs) or (isinstance(raw, Mapping) and hasattr(raw, "to_tuple")):
        return Outputs({str(key): normalized(value, depth - 1) for key, value in raw.items()})
    if isinstance(raw, Mapping):
        return {key: normalized(value, depth - 1) for key, value in raw.items()}
    found = {key: value for key, value in getattr(raw, "__dict__", {}).items() if not key.startswith("_")}
    if not isinstance(raw, type) and not callable(raw) and any(_holds_tensor(value, depth - 1) for value in found.values()):
        return Outputs({key: normalized(value, depth - 1) for key, value in found.items()})
    return raw


def _holds_tensor(value: Any, depth: int) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    return isinstance(value, Tensor) or (depth > 0 and isinstance(value, tuple | list) and any(_holds_tensor(v, depth - 1) for v in value))


@lru_cache(maxsize=64)
def named(fields: tuple[str, ...]) -> type[Any]:
    """The named tuple of these fields, one class for equal fields. Raises ValueError for names that are none."""
    return cast("type[Any]", namedtuple("Fields", fields))
