"""Events back from their JSON form: what a run said, read from its folder. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from engine.errors import EngineError
from engine.events import event as events
from engine.events.event import Event
from engine.reading import MB, parse_json, read_bytes
from engine.report.schema import EVENTS, WHOLE, misfit

_KINDS: dict[str, Any] = {name: kind for name, kind in vars(events).items() if isinstance(kind, type) and issubclass(kind, Event)}
Read = Callable[[Any], Any]
# Of a decoder of a thousand layers they are a few.
_LARGEST = 64 * MB


def from_dict(content: Mapping[str, Any]) -> Event | None:
    """The inverse of ``Event.to_dict``, also after JSON: a null where a number belongs is one that was not finite.

    None for an event of an unknown name and for content that does not fit it; keys that it does not have are passed over.
    """
    name = str(content.get("event"))
    kind = _KINDS.get(name)
    if kind is None or any(misfit(content.get(field), shape) for (event, field), shape in EVENTS.items() if event == name):
        return None
    try:
        found: Event = _reader(kind)(content)
        return found
    except (TypeError, ValueError, KeyError, OverflowError):
        return None


def read(directory: Path) -> tuple[Event, ...]:
    """What the run in ``directory`` said, in order; lines that are torn or of unknown events are passed over.

    Raises EngineError where there is no ``events.jsonl`` to read.
    """
    path = directory / "events.jsonl"
    try:
        lines = read_bytes(path, _LARGEST).splitlines()
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror or error}): give the folder of a run") from error
    return tuple(event for line in lines if (event := _event(line)) is not None)


def _event(line: bytes) -> Event | None:
    try:
        content = parse_json(line)
    except ValueError:
        return None
    return from_dict(content) if isinstance(content, dict) else None


@cache
def _reader(wanted: Any) -> Read:
    """A function that takes JSON to a value of the type ``wanted``; it raises TypeError, ValueError or KeyError."""
    origin, args = get_origin(wanted), get_args(wanted)
    if is_dataclass(wanted):
        return _dataclass(wanted)
    if origin is Literal:
        return lambda value: _checked(value, value in args)
    if origin in (Union, UnionType):
        (inner,) = (_reader(arg) for arg in args if arg is not NoneType)
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        item = _reader(args[0])
        return lambda value: tuple(item(one) for one in _checked(value, isinstance(value, list | tuple)))
    if origin is dict:
        return lambda value: dict(_checked(value, isinstance(value, dict)))
    if wanted is float:
        return _number
    if wanted is int:
        return lambda value: _checked(value, value is not None and misfit(value, WHOLE) is None)
    return lambda value: _checked(value, isinstance(value, wanted))


def _dataclass(wanted: Any) -> Read:
    hints = get_type_hints(wanted)
    readers = {field.name: _reader(hints[field.name]) for field in fields(wanted)}
    # How fields of earlier versions are read, where the type has had others.
    renamed: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = getattr(wanted, "renamed", None)
    needed = [field.name for field in fields(wanted) if field.default is MISSING and field.default_factory is MISSING]

    def read_fields(value: Any) -> Any:
        given = _checked(value, isinstance(value, Mapping))
        given = renamed(given) if renamed else given
        return wanted(**{name: reader(given[name]) for name, reader in readers.items() if name in given or name in needed})

    return read_fields


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    return float(_checked(value, isinstance(value, int | float) and not isinstance(value, bool)))


def _checked(value: Any, fits: bool) -> Any:
    if not fits:
        raise TypeError(f"{value!r} does not fit")
    return value
