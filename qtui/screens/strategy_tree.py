"""A plan's layers as a tree of modules: what is in which, and what is shown while some are closed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from engine.events.event import LayerRow

MANY = 40
"""Above that many layers repeated blocks are closed to begin with."""

ROOT = "/"


@dataclass(frozen=True)
class Entry:
    """One line of the tree. ``key`` is a layer's path, or a module's path and a slash. ``paths`` are the layers in it, which
    for a layer is its own."""

    key: str
    name: str
    depth: int
    paths: tuple[str, ...]
    module: bool = False
    repeated: bool = False


def tree(layers: Sequence[LayerRow], model: str) -> tuple[Entry, ...]:
    """All lines, the model first, in the order of the graph. Modules with one layer are one line with it."""
    return _tree(tuple(row.path for row in layers), model)


@lru_cache(4)
def _tree(paths: tuple[str, ...], model: str) -> tuple[Entry, ...]:
    return (Entry(ROOT, model, 0, paths, module=True), *_inside("", paths, 1))


def _inside(prefix: str, paths: Sequence[str], depth: int) -> Iterable[Entry]:
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(path[len(prefix) :].partition(".")[0], []).append(path)
    stems = [_stem(name) for name, inside in groups.items() if len(inside) > 1]
    for name, inside in groups.items():
        if len(inside) == 1:
            yield Entry(inside[0], inside[0][len(prefix) :] or "itself", depth, (inside[0],))
            continue
        whole = _common(inside, prefix + name)
        yield Entry(f"{whole}/", whole[len(prefix) :], depth, tuple(inside), True, stems.count(_stem(name)) > 1)
        yield from _inside(f"{whole}.", inside, depth + 1)


def _common(paths: Sequence[str], module: str) -> str:
    """The longest module path that holds all of ``paths``."""
    while True:
        names = {path[len(module) + 1 :].partition(".")[0] for path in paths}
        if len(names) > 1 or any(path == f"{module}.{name}" for name in names for path in paths):
            return module
        module = f"{module}.{names.pop()}"


def _stem(name: str) -> str:
    return re.sub(r"\d+$", "", name)


def closed_at_first(entries: Sequence[Entry]) -> frozenset[str]:
    """Blocks that stand beside others of their kind (``layer1``, ``layer2`` …), where there are many layers."""
    many = bool(entries) and len(entries[0].paths) > MANY
    return frozenset(entry.key for entry in entries if many and entry.repeated)


def visible(entries: Sequence[Entry], closed: Iterable[str], kept: Sequence[str] | None = None) -> tuple[Entry, ...]:
    """The lines that are not inside a closed module. With ``kept``, the layers that a filter leaves, nothing is closed and
    only they and what they are in are shown."""
    if kept is not None:
        left = set(kept)
        narrowed = (replace(entry, paths=tuple(path for path in entry.paths if path in left)) for entry in entries)
        return tuple(entry for entry in narrowed if entry.paths)
    shown, hidden = [], -1
    shut = set(closed)
    for entry in entries:
        if 0 <= hidden < entry.depth:
            continue
        hidden = entry.depth if entry.key in shut else -1
        shown.append(entry)
    return tuple(shown)


def above(entries: Sequence[Entry], key: str) -> str:
    """The module that a line is in."""
    index = next((i for i, entry in enumerate(entries) if entry.key == key), 0)
    depth = entries[index].depth
    return next((entry.key for entry in reversed(entries[:index]) if entry.depth < depth), ROOT)
