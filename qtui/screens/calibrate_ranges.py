"""The list of ranges while a model is calibrated, and what is said about each: pure functions of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from engine.events.event import Bins, RangeRow, WeightRow
from qtui import text
from qtui.drawing.columns import named
from qtui.drawing.rows import Cell, Column, Row
from qtui.stage_table import digit
from qtui.state import Run

COLUMNS = (
    Column("layer", "layer", min=7, grow=1, priority=9),
    Column("settled", "settled after", priority=8),
    Column("clip", "clip", align="right", priority=7),
    Column("outliers", "outliers", align="right", priority=3),
    Column("high", "high", align="right", priority=6),
    Column("low", "low", align="right", priority=5),
    Column("over", "clipped %", align="right", priority=4),
)


_OF_DECODERS = {"outliers": 8, "high": 7, "clip": 7, "low": 6, "settled": 5, "over": 4}


def columns(run: Run) -> tuple[Column, ...]:
    """Names are read whole before figures are, for ``layer1…conv1`` may be many layers. Outlier channels are told of decoders
    alone, before when a range settled, which a sign says too. Clips are those of fixed grids: activations in floats, or rounded as
    they come, have none."""
    names = [place.label for place in places(run)]
    if not _decodes(run):
        return named(tuple(column for column in COLUMNS if column.key != "outliers"), names)
    fixed = any(_grid(run, row) == "fixed" for row in (run.ranges.rows if run.ranges else ()))
    without = ("high",) if fixed else ("clip", "over")
    kept = (column for column in COLUMNS if column.key not in without)
    return named(tuple(replace(column, priority=_OF_DECODERS.get(column.key, column.priority)) for column in kept), names)


EMPTY = f"No ranges are kept of this run. They are seen while a run calibrates: n in the strategy ({digit('strategy')}) starts one."


def waiting(run: Run) -> str:
    """What stands where there are no ranges yet."""
    return f"Nothing is calibrated yet. The first {'windows of text bring' if _decodes(run) else 'batch of images brings'} the ranges here."


@dataclass(frozen=True)
class Place:
    """One line of the list: values that share a grid, the weights of the first layer that reads them, or both."""

    key: str
    label: str
    values: RangeRow | None
    weights: WeightRow | None


def places(run: Run) -> tuple[Place, ...]:
    """The values that are calibrated, in the order of the graph; then layers whose weights alone are quantized."""
    return tuple(_places(run))


def _places(run: Run) -> Iterator[Place]:
    read: set[str] = set()
    for row in run.ranges.rows if run.ranges else ():
        read.update(row.layers)
        weights = next((run.weights[path] for path in row.layers if path in run.weights), None)
        label = _label(row)
        yield Place(row.name, text.in_block(label) if _decodes(run) else label, row, weights)
    for path, weight in run.weights.items():
        if path not in read:
            yield Place(f"weights {path}", text.in_block(path) if _decodes(run) else path, None, weight)


Spread = RangeRow | WeightRow
"""What has bins and clips."""


def weights_title(run: Run, row: WeightRow, room: int = 80) -> str:
    """``conv2 ─ weights ─ 64 channels``, of an embedding ``wte ─ weights ─ 2,048 rows``; without their count where it would be cut."""
    name = text.in_block(row.path) if _decodes(run) else row.path
    word = "row" if _looks_up(run, row.path) else "channel"
    title = f"{name} ─ weights"
    counted = f"{title} ─ {row.channels:,} {word}{'' if row.channels == 1 else 's'}"
    return counted if len(counted) <= room else title


def cut_low(row: Spread) -> float | None:
    """The lower clip; None where it cuts nothing off at the very edge, and its line would hide the zeros of a relu."""
    return row.clip_low if abs(row.clip_low - row.low) > row.bins.width else None


def no_values(run: Run, place: Place | None) -> str:
    """Why there is no histogram of activations."""
    only = run.ranges is not None and place is not None and place.values is None
    if only and place is not None and place.weights and _looks_up(run, place.weights.path):
        return "it reads token ids: no values to round"
    return "stay fp32: weights only" if only else "come with the first batch"


def find(run: Run, key: str | None) -> Place | None:
    return next((place for place in places(run) if place.key == key), None)


def rows(run: Run) -> tuple[Row, ...]:
    """The list: how far each range has settled, and where it ends."""
    seen, final = (run.ranges.seen, run.ranges.final) if run.ranges else (0, False)
    keys = [column.key for column in columns(run)]
    return tuple(_row(place, seen, final, keys) for place in places(run))


def settled(run: Run) -> tuple[int, int]:
    """How many of the ranges have settled, of how many there are."""
    found = run.ranges.rows if run.ranges else ()
    return sum(row.settled is not None for row in found), len(found)


def _row(place: Place, seen: int, final: bool, keys: Sequence[str]) -> Row:
    row = place.values
    if row is None:
        told = {"layer": place.label, "settled": "weights only" if final else ""}
        return Row(place.key, tuple(told.get(key, "") for key in keys), role="dim", glyph="·")
    # What a range has held for is the part of the images that did not move it.
    if row.settled is not None:
        held = Cell(f"{row.settled:,}", bar=max(1 - row.settled / max(seen, 1), 0.0))
    else:
        held = Cell("moving", "change", bar=0.0)
    over = cut_off(row)
    cells: dict[str, str | Cell] = {
        "layer": place.label, "settled": held, "clip": figure(row.clip_high), "outliers": f"{row.outliers or 0:,}",
        "high": figure(row.high), "low": figure(row.low), "over": f"{100 * over:.1f}" if over else "0",
    }  # fmt: skip
    return Row(place.key, tuple(cells[key] for key in keys), glyph="●" if row.settled is not None else "◐")


def _label(row: RangeRow) -> str:
    if not row.layers or row.name in row.layers:
        return row.name
    more = f" +{len(row.layers) - 1}" if len(row.layers) > 1 else ""
    return f"{row.layers[0]}{more}"


def clipped(bins: Bins, low: float, high: float) -> float:
    """The part of a histogram's values (0 to 1) beyond these ends; a bin that an end cuts counts in part."""
    total = sum(bins.counts)
    if not total or not bins.width > 0:
        return 0.0
    outside = 0.0
    for index, count in enumerate(bins.counts):
        start = bins.start + index * bins.width
        inside = min(start + bins.width, high) - max(start, low)
        outside += count * (1 - min(max(inside / bins.width, 0.0), 1.0))
    return outside / total


def cut_off(row: RangeRow) -> float:
    """The part of the values that the clip cuts off; none where its ends are those of the values but for a step of the grid."""
    near = 0.01 * (row.high - row.low)
    if row.clip_low - row.low <= near and row.high - row.clip_high <= near:
        return 0.0
    return clipped(row.bins, row.clip_low, row.clip_high)


def figure(value: float) -> str:
    """A range's end in at most six cells."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    return f"{value:.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 0.1 else text.tidy(value, ".2g")


def sentence(run: Run, key: str | None) -> str:
    """About the line under the cursor."""
    place = find(run, key)
    if place is None or run.ranges is None:
        what = "windows of training text" if _decodes(run) else "training images"
        return f"Calibration runs some {what} through the model and notes which range each layer's input takes."
    if place.values is None and place.weights and _looks_up(run, place.weights.path):
        said = f"{place.label} looks rows up by their number: there is no range to find, only its rows become integers."
        return f"{said} {_spread(place.weights, 'row')}".rstrip()
    if place.values is None:
        said = f"{place.label} keeps fp32 activations: only its weights become integers, so there is no range to find."
        return f"{said} {_spread(place.weights)}".rstrip()
    return f"{_values(run, place.values)} {_outliers(place.values) or _state(run, place.values)}"


def _outliers(row: RangeRow) -> str:
    """Channels that stand out, where there are any: they take the steps of all others."""
    if not row.outliers or not row.channels:
        return ""
    several = f"{row.outliers:,} of {row.channels:,} channels reach" if row.outliers > 1 else f"One of {row.channels:,} channels reaches"
    return f"{several} over 6 times as far as the median one."


def _grid(run: Run, row: RangeRow) -> Literal["fixed", "dynamic", "floats"]:
    """What is made of the values: integers on one grid, on a grid for each token, or nothing."""
    planned = next((layer.actual for layer in run.plan.layers if layer.path in row.layers), None) if run.plan else None
    if planned is None:
        return "fixed"
    return "floats" if planned.activations is None else "dynamic" if planned.activations.dynamic else "fixed"


def cuts(run: Run, row: Spread) -> bool:
    """Whether the clips of a row are the ends of a grid."""
    return isinstance(row, WeightRow) or _grid(run, row) == "fixed"


def _values(run: Run, row: RangeRow) -> str:
    readers = _several(tuple(map(text.in_block, row.layers)) if _decodes(run) else row.layers)
    name = f"{readers} reads" if len(row.layers) == 1 else f"{readers} read" if readers else f"{row.name} has"
    over = cut_off(row)
    ends = f"{name} values from {figure(row.low)} to {figure(row.high)}"
    if (grid := _grid(run, row)) != "fixed":
        kept = "each token gets a grid of its own" if grid == "dynamic" else "they stay in floats, weights alone are rounded"
        return f"{ends}; {kept}."
    if not over:
        return f"{ends}; the grid of integers covers all of them."
    part = f"{100 * over:.1f} %" if over >= 5e-4 else "less than 0.1 %"
    return f"{ends}; the grid ends at {_clip(row)}: {part} are clipped so that all others get a finer step."


def _clip(row: RangeRow) -> str:
    low, high = row.clip_low > row.low, row.clip_high < row.high
    if low and high:
        return f"{figure(row.clip_low)} and {figure(row.clip_high)}"
    return figure(row.clip_low if low else row.clip_high)


def _state(run: Run, row: RangeRow) -> str:
    final = run.ranges is not None and run.ranges.final
    if row.settled is not None:
        return f"Settled after {row.settled:,} {_unit(run)}."
    return f"It moved to the end: more {_unit(run)} may help." if final else "It still moves."


def _unit(run: Run) -> str:
    return "windows" if _decodes(run) else "images"


def _decodes(run: Run) -> bool:
    """Whether it is a language model's."""
    return bool(run.plan and any(row.capabilities.between_floats for row in run.plan.layers))


def _looks_up(run: Run, path: str) -> bool:
    """Whether a layer is an embedding."""
    return bool(run.plan and any(row.path == path and row.capabilities.role == "embedding" for row in run.plan.layers))


def _several(names: tuple[str, ...]) -> str:
    if len(names) <= 2:
        return " and ".join(names)
    return f"{names[0]} and {len(names) - 1} others"


def _spread(row: WeightRow | None, word: str = "channel") -> str:
    if row is None or row.channels < 2 or not row.narrowest > 0:
        return ""
    return f"The widest {word} is {row.widest / row.narrowest:.0f} times the narrowest."
