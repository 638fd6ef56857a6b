"""Which columns of a table fit into a width, and how wide each is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from qtui.drawing.rows import Column, Measure

GAP = 2
_NAME = 18
_GROWN = 8  # A column that grows may be cut to this where its own minimum is not given.


def named(columns: tuple[Column, ...], names: Iterable[str]) -> tuple[Column, ...]:
    """The columns with a first one that shows ``names`` whole, up to a length: of layers that differ in the middle of their names a
    cut leaves lines that are all the same."""
    longest = min(max(map(len, names), default=0), _NAME)
    return (replace(columns[0], min=max(columns[0].min, longest)), *columns[1:])


@dataclass(frozen=True)
class Place:
    """Where a column stands: its index, first cell, width, and the width of the text beside its bars."""

    index: int
    x: int
    width: int
    beside_bar: int


@dataclass(frozen=True)
class Plan:
    """A table laid out in ``width`` cells. ``earlier`` and ``later`` tell of columns scrolled out of view."""

    width: int
    marks: bool
    glyph: int
    places: tuple[Place, ...]
    earlier: bool = False
    later: bool = False

    @property
    def left(self) -> int:
        """The first cell after the cursor, the mark and the glyph."""
        return _left(self.marks, self.glyph)


def arrange(
    columns: tuple[Column, ...],
    measures: tuple[Measure, ...],
    width: int,
    *,
    marks: bool = False,
    glyph: int = 0,
    skipped: int | None = None,
) -> Plan:
    """Lay the columns out. With ``skipped`` None those of low priority are dropped; otherwise the first column stays and
    that many after it are scrolled out of view."""
    left = _left(marks, glyph)
    room = max(width - left - 1, 1)
    if skipped is None:
        kept = _kept(columns, measures, room)
        earlier = later = False
    else:
        kept = _scrolled(columns, measures, room, skipped)
        earlier, later = skipped > 0, bool(kept) and kept[-1] < len(columns) - 1
    widths = _widths(kept, columns, measures, room)
    places, x = [], left
    for index in kept:
        places.append(Place(index, x, widths[index], measures[index].beside_bar))
        x += widths[index] + GAP
    return Plan(width, marks, glyph, tuple(places), earlier, later)


def _left(marks: bool, glyph: int) -> int:
    return 1 + (2 if marks else 0) + (glyph + 1 if glyph else 0)


def _floor(column: Column, measure: Measure) -> int:
    if column.min:
        return min(column.min, measure.full)
    return min(_GROWN, measure.full) if column.grow else measure.full


def _total(sizes: list[int]) -> int:
    return sum(sizes) + GAP * (len(sizes) - 1)


def _kept(columns: tuple[Column, ...], measures: tuple[Measure, ...], room: int) -> list[int]:
    kept = list(range(len(columns)))
    while len(kept) > 1 and _total([_floor(columns[i], measures[i]) for i in kept]) > room:
        kept.remove(min(kept, key=lambda i: (columns[i].priority, -i)))
    return kept


def _scrolled(columns: tuple[Column, ...], measures: tuple[Measure, ...], room: int, skipped: int) -> list[int]:
    kept = [0] if columns else []
    for index in range(1 + skipped, len(columns)):
        if len(kept) > 1 and _total([_floor(columns[i], measures[i]) for i in [*kept, index]]) > room:
            break
        kept.append(index)
    return kept


def _widths(kept: list[int], columns: tuple[Column, ...], measures: tuple[Measure, ...], room: int) -> dict[int, int]:
    widths = {i: measures[i].full for i in kept}
    space = room - GAP * (len(kept) - 1)
    excess = sum(widths.values()) - space
    floors = {i: _floor(columns[i], measures[i]) for i in kept}
    if sum(floors.values()) > space:
        floors = dict.fromkeys(kept, 1)
    while excess > 0 and any(widths[i] > floors[i] for i in kept):
        widest = max((i for i in kept if widths[i] > floors[i]), key=lambda i: widths[i])
        widths[widest] -= 1
        excess -= 1
    growing = [i for i in kept if columns[i].grow]
    portions = sum(columns[i].grow for i in growing)
    left = -excess
    for i in growing:
        share = left * columns[i].grow // portions if left > 0 else 0
        widths[i] += share
        left -= share
        portions -= columns[i].grow
    return widths
