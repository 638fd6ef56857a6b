"""The measured layers, most harm first, and what is said about each: pure functions of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from qtui import text
from qtui.drawing.columns import named
from qtui.drawing.rows import Cell, Column, Row
from qtui.screens.calibrate_result import Figures, number
from qtui.spec_words import respelled
from qtui.stage_table import digit
from qtui.state import Run

Order = Literal["harm", "graph"]

COLUMNS = (
    Column("layer", "layer", min=9, grow=3, priority=9),
    Column("as", "runs as", min=10, grow=1, priority=4, cut="end"),
    Column("on", "on", min=8, grow=2, priority=3, cut="end"),
    Column("own", "own dB", min=6, align="right", priority=8),
    Column("sqnr", "SQNR dB", align="right", priority=7),
    Column("params", "params %", min=8, align="right", priority=6),
    Column("time", "time %", min=6, align="right", priority=5),
)


def columns(run: Run) -> tuple[Column, ...]:
    """Without the noise from before a layer where only its own was measured, as of a language model."""
    found = run.layers.get(form(run), ())
    shown: tuple[Column, ...] = COLUMNS
    if found and all(row.get("own_sqnr_db") == row.get("sqnr_db") for row in found):
        shown = tuple(replace(column, title="SQNR dB") if column.key == "own" else column for column in COLUMNS if column.key != "sqnr")
    return named(shown, [_name(row, _decodes(run)) for row in found])


EMPTY = f"No layer figures are kept of this run.\nA run started here measures each layer: {digit('model')}, then n."
COMING = "The whole model is measured, and each layer is being measured.\nTheir figures stand here in a moment."
NOT_MEASURED = "Nothing is measured yet: that comes after the calibration."
HARMFUL_DB = 20.0
"""Below this the noise of a layer alone is over a tenth of its signal's amplitude."""


def form(run: Run) -> Literal["ptq", "qat"]:
    """The form whose layers can be shown: PTQ's, or only QAT's where a past run kept no others."""
    return "qat" if "ptq" not in run.layers and "qat" in run.layers else "ptq"


def rows(run: Run, order: Order, bars: bool = False) -> tuple[Row, ...]:
    """The layers: most harm first, which is the lowest SQNR of a layer's own noise, or as in the graph. ``bars`` beside the
    figures need room."""
    found = run.layers.get(form(run), ())
    total = sum(int(number(row.get("params")) or 0) for row in found)
    ordered = sorted(found, key=_harm) if order == "harm" else found
    worst = max((_noise(row) or 0.0 for row in found), default=0.0)
    decodes = _decodes(run)
    keys = {column.key for column in columns(run)}
    kept = [index for index, column in enumerate(COLUMNS) if column.key in keys]
    found_rows = (_chosen(_row(row, total, worst, decodes), kept) for row in ordered)
    return tuple(found_rows) if bars else tuple(_without_bars(row) for row in found_rows)


def _decodes(run: Run) -> bool:
    return run.reads_text


def _name(row: Figures, decodes: bool) -> str:
    name = str(row.get("name", ""))
    return text.in_block(name) if decodes else name


def _noise(row: Figures) -> float | None:
    """The amplitude of a layer's own noise beside its signal: 20 dB are a tenth."""
    own = number(row.get("own_sqnr_db"))
    return None if own is None else 10 ** min(-own / 20, 9.0)


def _harm(row: Figures) -> float:
    own, whole = number(row.get("own_sqnr_db")), number(row.get("sqnr_db"))
    return own if own is not None else whole if whole is not None else math.inf


def _row(row: Figures, total: int, worst: float, decodes: bool) -> Row:
    name = str(row.get("name", ""))
    own, params, share = number(row.get("own_sqnr_db")), number(row.get("params")) or 0, number(row.get("time_share"))
    harm = own is not None and own < HARMFUL_DB
    kept = str(row.get("actual")) in ("fp32", "folded")
    cells: tuple[str | Cell, ...] = (
        _name(row, decodes), respelled(row.get("actual")), text.kernels(row.get("kernel")),
        Cell(_db(own), "harm" if harm else "", (_noise(row) or 0.0) / worst if worst else None), _db(row.get("sqnr_db")),
        Cell(f"{100 * params / total:.1f}", bar=params / total) if total else "",
        "" if share is None else Cell(f"{100 * share:.0f}", bar=share),
    )  # fmt: skip
    return Row(name, cells, role="dim" if kept else "", glyph="✗" if harm else "–" if kept else "●")


def _chosen(row: Row, kept: Sequence[int]) -> Row:
    return replace(row, cells=tuple(row.cells[index] for index in kept))


def _without_bars(row: Row) -> Row:
    return replace(row, cells=tuple(Cell(cell.text, cell.role) if isinstance(cell, Cell) else cell for cell in row.cells))


def _db(value: object) -> str:
    found = number(value)
    return "–" if found is None else f"{found:.1f}"


def sentence(run: Run, key: str | None) -> str:
    """About the layer under the cursor."""
    found = run.layers.get(form(run), ())
    row = next((row for row in found if row.get("name") == key), None)
    if row is None:
        return NOT_MEASURED if not run.measured.get("ptq") else "Of this run only the figures of the whole model are kept."
    name, own, whole = text.one_line(row["name"]), number(row.get("own_sqnr_db")), number(row.get("sqnr_db"))
    if row.get("actual") == "folded":
        return f"{name} is folded into the layer before it: it costs nothing any more."
    if row.get("actual") == "fp32":
        return f"{name} stays in fp32: {text.one_line(row.get('reason', ''))}."
    if own is None and whole is None:
        return f"{name} runs as {row.get('actual')} on {text.kernels(row.get('kernel'))}; how much noise it adds was not measured."
    if own is None:
        return f"{name} has {whole:.1f} dB at its output, with the noise of the layers before it; its own was not measured."
    decodes = _decodes(run)
    who = f"Rounding the weights of {text.in_block(name)}" if decodes else f"{name} alone"
    said = f"{who} adds noise of {_percent(_noise(row) or 0.0)} of its output"
    if row is min(found, key=_harm) and len(found) > 1:
        said += ", the most of all layers: e changes its strategy"
    elif own < HARMFUL_DB:
        said += ", which is much: e changes its strategy"
    return f"{said}." if whole is None or whole == own else f"{said}. With the noise from before it: {whole:.1f} dB."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else f"{100 * share:.2f} %"
