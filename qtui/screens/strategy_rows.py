"""The strategy as a table: a line for each layer and module, with what this machine makes of what is asked."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.events.event import LayerRow
from engine.events.speed import relative_speed
from engine.planning.sensitivity import BITS, Sensitivity
from engine.recipe.spec import ActivationSpec, LayerSpec
from qtui import spec_words, text
from qtui.draft import Draft
from qtui.drawing.rows import Cell, Column, Row
from qtui.screens.calibrate_layers import HARMFUL_DB
from qtui.screens.strategy_tree import Entry

NONE = "–"
EDITED = "*"
MARKED = "+"
BOTH = "±"
Figures = Mapping[str, Mapping[str, Any]]
"""Measured rows of the report by layer."""

_NARROW, _WIDE = 80, 100
# Cells of the bar that draws a layer's noise, and dB from which on there is nothing to draw.
_NOISE_BAR, _SILENT_DB = 3, 50.0
_PLAIN = "plain"
_LATER = "told when it is planned"
_OBSERVERS = {"moving-average": "moving avg", "histogram-mse": "hist. mse"}


def columns(width: int, figures: Figures, timed: bool = False, estimated: bool = False) -> tuple[Column, ...]:
    """The columns for a window of ``width``; what does not fit is dropped, the least telling first. ``timed`` is whether layers
    were timed alone: a narrow window then tells of the slower ones where it says what they run on. ``estimated`` is whether the noise
    of each layer is estimated, or will be."""
    narrow = width < _NARROW
    shown = [
        Column("name", "layer", min=20, grow=1, priority=100),
        # A deep module leaves little room for what stands beside it.
        Column("weights", "weights", min=8 if width < 60 else 0, cut="end", priority=90),
        Column("activations", "act." if narrow else "activations", priority=80),
    ]
    if width >= _WIDE:
        shown.append(Column("observer", "observer", priority=30))
    shown += [
        Column("params", "size %", align="right", priority=60, width=14 if width >= _WIDE else None),
        Column("time", "time %", align="right", priority=50, width=13 if width >= _WIDE else None),
    ]
    if estimated:
        # Until it is measured, this is what tells most.
        shown.append(Column("noise", "est. dB", align="right", priority=65, width=_NOISE_BAR + 6 if width >= _WIDE else 7))
    if figures:
        shown.append(Column("sqnr", "SQNR dB", align="right", priority=70))
        if width >= _WIDE and any(row.get("own_sqnr_db") != row.get("sqnr_db") for row in figures.values()):
            shown.append(Column("own", "own dB", align="right", priority=20))
    if timed and width >= _WIDE:
        shown.append(Column("alone", "int8 alone", align="right", priority=45))
    return (*shown, Column("kernel", "runs on", priority=40))


def rows(
    draft: Draft, entries: Iterable[Entry], closed: Collection[str], figures: Figures, width: int, nested: bool = True,
    estimates: Sensitivity | None = None,
) -> tuple[Row, ...]:  # fmt: skip
    """A row for each line of the tree. ``nested`` keeps room for the sign of modules before layers; ``estimates`` tell the noise of each
    layer as it is and with fewer bits, empty where they are still to come."""
    keys = [column.key for column in columns(width, figures, is_timed(draft), estimates is not None)]
    total = _total(draft)
    found = []
    for entry in entries:
        if entry.module:
            cells, role = _module(draft, entry, entry.key in closed, figures, width, total), "title"
            cells["noise"] = _noisiest(draft, entry, estimates) if entry.key in closed and estimates else ""
        else:
            cells, role = _layer(draft, entry, figures, width, total, nested)
            cells["noise"] = _noise(draft, entry.paths[0], estimates, width) if estimates else ""
        edited = bool(draft.edited.intersection(entry.paths))
        marked = _marked(draft, entry)
        glyph = (BOTH if edited else MARKED) if marked else EDITED if edited else ""
        ordered = tuple(_rolled(cells[key], role) for key in keys)
        found.append(Row(entry.key, ordered, "change" if glyph else role, entry.depth, glyph=glyph or " "))
    return tuple(found)


def queried(draft: Draft, row: LayerRow, figures: Figures, estimates: Sensitivity | None = None) -> dict[str, object]:
    """What a filter can ask of a layer beside its name."""
    wanted = draft.specs.get(row.path)
    weights, activations = (wanted.weights, wanted.activations) if wanted else (None, None)
    return {
        "kind": row.kind, "bits": weights.bits if weights else None, "act": activations.bits if activations else None,
        "sqnr": figures.get(row.path, {}).get("sqnr_db"), "params": row.params, "size": 100 * row.params / _total(draft),
        "time": 100 * row.time_share,
        "est": estimates.noise_db(row.path, draft.actual(row.path)[0]) if estimates and row.path in draft.specs else None,
    }  # fmt: skip


def _total(draft: Draft) -> int:
    return sum(row.params for row in draft.plan.layers) or 1


def is_timed(draft: Draft) -> bool:
    return any(row.int8_ms is not None for row in draft.plan.layers)


def _marked(draft: Draft, entry: Entry) -> bool:
    able = [path for path in entry.paths if path in draft.specs]
    return bool(able) and draft.marked.issuperset(able)


def _rolled(cell: str | Cell, role: str) -> Cell:
    # The row's own role is that of its glyph; a cell that says nothing else has the role of its kind of line.
    cell = cell if isinstance(cell, Cell) else Cell(cell)
    return Cell(cell.text, cell.role or role or _PLAIN, cell.bar)


def _layer(draft: Draft, entry: Entry, figures: Figures, width: int, total: int, nested: bool) -> tuple[dict[str, str | Cell], str]:
    row = draft.layer(entry.paths[0])
    assert row is not None
    wanted, (actual, _) = draft.specs.get(row.path), draft.actual(row.path)
    proposed = row.proposed
    measured = figures.get(row.path, {})
    stale = "dim" if measured.get("actual") not in (None, str(actual)) else ""
    cells: dict[str, str | Cell] = {
        "name": f"  {entry.name}" if nested else entry.name,
        "params": _share(row.params / total, width),
        "time": _share(row.time_share, width),
        "sqnr": Cell(_decibels(measured.get("sqnr_db")), stale),
        "own": Cell(_decibels(measured.get("own_sqnr_db")), stale),
        "weights": NONE, "activations": NONE, "observer": NONE, "kernel": _kernel_cell(draft, row, width),
        "alone": Cell(relative_speed(row.int8_ms, row.fp32_ms, row.steady), "harm" if row.slower else "" if row.steady else "dim"),
    }  # fmt: skip
    if wanted is None:
        return cells, "dim"
    change = "change" if row.path in draft.edited else ""
    if change:
        cells["name"] = Cell(str(cells["name"]), change)
    cells["weights"] = Cell(weights_text(wanted, actual), change if wanted.weights != proposed.weights else "")
    # An embedding reads token ids: there is nothing to round.
    reads = activations_text(wanted, actual) if row.capabilities.rounds_inputs else NONE
    cells["activations"] = Cell(reads, change if _axes(wanted) != _axes(proposed) else "")
    observer = wanted.activations.observer if wanted.activations else NONE
    differs = wanted.activations and proposed.activations and observer != proposed.activations.observer
    cells["observer"] = Cell(_OBSERVERS.get(observer, observer), change if differs else "")
    return cells, "" if wanted.weights else "dim"


def _noise(draft: Draft, path: str, estimates: Sensitivity, width: int) -> Cell:
    """``31→24``: the noise as it is, and with the next fewer bits for the weights; a bar of it."""
    if path not in draft.specs:
        return Cell("")
    if not estimates.layers:
        return Cell("…", "dim")
    spec = draft.actual(path)[0]
    now = estimates.noise_db(path, spec)
    if now is None or not math.isfinite(now):
        return Cell("")
    fewer = next((bits for bits in BITS if spec.weights and bits < spec.weights.bits), None)
    then = estimates.noise_db(path, replace(spec, weights=replace(spec.weights, bits=fewer))) if fewer and spec.weights else None
    said = f"{now:.0f}→{then:.0f}" if then is not None and math.isfinite(then) else f"{now:.0f}"
    part = min(max(1 - now / _SILENT_DB, 0.0), 1.0)
    return Cell(said, "harm" if now < HARMFUL_DB else "", part if width >= _WIDE else None)


def _noisiest(draft: Draft, entry: Entry, estimates: Sensitivity) -> Cell:
    """Of a closed module the noise of its worst layer."""
    found = [estimates.noise_db(path, draft.actual(path)[0]) for path in entry.paths if path in draft.specs]
    known = [one for one in found if one is not None and math.isfinite(one)]
    return Cell(f"≥ {min(known):.0f}", "harm" if min(known) < HARMFUL_DB else "dim") if known else Cell("")


def _axes(spec: LayerSpec) -> tuple[object, ...]:
    found = spec.activations
    return (found.bits, found.symmetric, found.dynamic) if found else (spec.weights is None,)


def _module(draft: Draft, entry: Entry, closed: bool, figures: Figures, width: int, total: int) -> dict[str, str | Cell]:
    inside = [row for path in entry.paths if (row := draft.layer(path))]
    asked = [(draft.specs[row.path], draft.actual(row.path)[0]) for row in inside if row.editable]
    reading = [pair for pair, row in zip(asked, (row for row in inside if row.editable), strict=True) if row.capabilities.rounds_inputs]
    # What its open lines say needs no second place.
    says = closed and asked
    figured = [figures[path] for path in entry.paths if path in figures]
    return {
        "name": f"{'▸' if closed else '▾'} {entry.name}",
        "weights": _alike(weights_text(*pair) for pair in asked) if says else "",
        "activations": _alike(activations_text(*pair) for pair in reading) if says and reading else "",
        "observer": "",
        "params": _share(sum(row.params for row in inside) / total, width, "dim"),
        "time": _share(sum(row.time_share for row in inside), width, "dim"),
        "sqnr": Cell(_lowest(figured, "sqnr_db") if closed else "", "dim"),
        "own": Cell(_lowest(figured, "own_sqnr_db") if closed else "", "dim"),
        "kernel": Cell(_alike(runs_on(draft, row) for row in inside) if closed else "", "dim"),
        "alone": Cell(_slower(inside) if closed else "", "dim"),
    }


def _kernel_cell(draft: Draft, row: LayerRow, width: int) -> str | Cell:
    spec = draft.actual(row.path)[0]
    if width < _WIDE and row.slower and spec.weights and spec.activations:
        return Cell("int8 slower", "harm")
    return runs_on(draft, row)


def _slower(inside: Sequence[LayerRow]) -> str:
    count = sum(row.slower for row in inside)
    return f"{count} slower" if count else ""


def _alike(texts: Iterable[str]) -> str:
    found = list(dict.fromkeys(texts))
    return found[0] if len(found) == 1 else "mixed"


def _lowest(figured: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [row[key] for row in figured if isinstance(row.get(key), int | float)]
    return f"≥ {min(values):.1f}" if values else ""


def _share(part: float, width: int, role: str = "") -> Cell:
    return Cell(f"{100 * part:.1f}", role, part if width >= _WIDE else None)


def _decibels(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else ""


def weights_text(wanted: LayerSpec, actual: LayerSpec) -> str:
    """``w4 g32 mse``; what the machine makes of it stands behind an arrow: ``w8 g32→channel``."""
    if wanted.weights is None or actual.weights is None:
        return spec_words.FP32
    said = spec_words.weights(wanted.weights)
    if actual.weights != wanted.weights:
        asked, got = spec_words.scheme(wanted.weights), spec_words.scheme(actual.weights)
        width = spec_words.width(wanted.weights)
        said = said.replace(f"{width} {asked}".rstrip(), f"{width} {asked}→{got or 'channel'}", 1)
    return said


def activations_text(wanted: LayerSpec, actual: LayerSpec) -> str:
    """``a8``, or ``a8→7`` where the machine takes fewer bits; ``fp32`` for weight-only."""
    asked, got = wanted.activations, actual.activations
    if wanted.weights is None:
        return NONE
    if asked is None or got is None:
        return spec_words.FP32
    said = spec_words.activations(replace(asked, dynamic=got.dynamic))
    return said.replace(f"a{asked.bits}", f"a{asked.bits}→{got.bits}", 1) if asked.bits != got.bits else said


def mapping(activations: ActivationSpec) -> str:
    return "symmetric" if activations.symmetric else "affine"


def kernel_of(draft: Draft, row: LayerRow) -> str:
    """What the layer would run on: as planned, or where it was edited since, as layers like it were planned."""
    actual = draft.actual(row.path)[0]
    planned = _class(row.actual)
    if row.capabilities.between_floats and actual.weights is not None and actual != row.actual:
        alike = (other for other in draft.plan.layers if other.editable and other.kind == row.kind)
        return next((other.kernel for other in alike if _arithmetic(other.actual) == _arithmetic(actual)), _LATER)
    if not row.editable or _class(actual) == planned == "integers" or actual == row.actual:
        return row.kernel
    if actual.weights is None:
        return "torch fp32"
    if actual.activations is None:
        return f"torch fp32 on weights stored in {actual.weights.bits} bits"
    like = [other for other in draft.plan.layers if _class(other.actual) == "integers" and other.editable]
    return next((other.kernel for other in sorted(like, key=lambda other: other.kind != row.kind)), _LATER)


def _arithmetic(spec: LayerSpec) -> tuple[object, ...]:
    """What decides which kernel computes a decoder's matrix."""
    weights, activations = spec.weights, spec.activations
    return (weights and (weights.bits, weights.granularity, weights.symmetric), activations and (activations.bits, activations.dynamic))


def _class(spec: LayerSpec) -> str:
    return "fp32" if spec.weights is None else "integers" if spec.activations else "stored"


def runs_on(draft: Draft, row: LayerRow) -> str:
    """The kernel in a few cells."""
    kernel = kernel_of(draft, row)
    if kernel.startswith("torch fp32 on weights"):
        return "torch fp32"
    return {"simulation": "simulated", _LATER: "?"}.get(kernel) or text.kernels(kernel)
