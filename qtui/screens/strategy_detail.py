"""Everything about a layer of the strategy: its fields, what was proposed, what each key would make of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.events.event import LayerRow
from engine.recipe.spec import ActivationSpec, LayerSpec
from qtui import text
from qtui.draft import Draft
from qtui.drawing.rows import Cell, Column, Row
from qtui.edits import EditName, inputs
from qtui.screens.strategy_rows import NONE, kernel_of, mapping


def difference(count: int) -> str:
    """Bytes more or less: ``−12.30 kB``."""
    if not count:
        return "same size"
    return f"{'+' if count > 0 else '−'}{text.size(abs(count))}"


FIELDS: tuple[tuple[str, EditName, str], ...] = (
    ("weight bits", "weights", "w"), ("granularity", "granularity", "c"), ("weight scale", "rounding", "m"),
    ("activations", "activations", "a"), ("mapping", "symmetric", "s"), ("observer", "observer", "r"),
)  # fmt: skip

_NOW = 17
_TITLE = 68
DETAIL_COLUMNS = (
    Column("field", "", priority=9), Column("now", "now", priority=8), Column("proposed", "proposed", priority=6),
    Column("next", "next key", priority=7), Column("about", "what it is", min=20, grow=1, cut="end", priority=5),
)  # fmt: skip
_MEANING: Mapping[str, str] = {
    "weight bits": "integers for a weight; 4 and fewer share a byte",
    "granularity": "how many weights share one step",
    "weight scale": "from the largest weight, or of least squared error",
    "activations": "integers for the layer's input",
    "mapping": "zero where the range needs it, or in the middle",
    "observer": "how calibration chooses the range",
}


def detail_title(draft: Draft, row: LayerRow, width: int = _TITLE) -> str:
    """Which layer it is, in ``width`` cells where that can be done."""
    out = row.weight_shape[0] if row.weight_shape else 0
    what = (
        f"{out:,} rows of {inputs(row):,}" if row.capabilities.role == "embedding" else f"{inputs(row):,} inputs to each of {out:,} outputs"
    )
    name = text.in_block(row.path) if row.capabilities.between_floats else row.path
    for told in (what, f"{inputs(row):,} → {out:,}"):
        title = f"{name} ─ {row.kind}{f' ─ {told}' if row.editable and out else ''} ─ {row.params:,} parameters"
        if len(title) <= width:
            break
    return title


def detail(draft: Draft, row: LayerRow) -> tuple[Row, ...]:
    """Each field of a layer: what it is now, what was proposed, what its key would make of it."""
    if row.path not in draft.specs:
        return (Row("why", ("", f"{row.obstacle or 'it stays as it is'}"), selectable=False),)
    spec, found = draft.specs[row.path], []
    for name, edit, key in FIELDS:
        after = field(name, draft.edit(edit, [row.path]).draft.specs[row.path])
        now, proposed = field(name, spec), field(name, row.proposed)
        if name == "mapping" and row.capabilities.affine:
            # The key is for weights that can have zero points, whatever becomes of the activations.
            now, proposed, after = (
                _of_weights(found) for found in (spec, row.proposed, draft.edit(edit, [row.path]).draft.specs[row.path])
            )
        if name == "activations" and not row.capabilities.rounds_inputs:
            # It reads token ids.
            now = proposed = after = NONE
        role = "change" if now != proposed else ""
        then = f"{key} {after}" if after != now else NONE
        found.append(
            Row(name, (Cell(name, "dim"), Cell(now, role), Cell(proposed, "dim"), then, Cell(_MEANING[name], "dim")), selectable=False)
        )
    limit = draft.actual(row.path)[1] or alone(row)
    toggled = draft.edit("keep", [row.path]).draft.predicted_bytes - draft.predicted_bytes
    keep = f"f {'fp32' if spec.weights else 'integers'}, {difference(toggled)}"
    found.append(Row("runs on", (Cell("runs on", "dim"), kernel_of(draft, row), "", keep, Cell(limit, "dim")), selectable=False))
    return tuple(found)


def alone(row: LayerRow) -> str:
    """What was measured of the layer before anything was quantized, or nothing."""
    if row.int8_ms is None or row.fp32_ms is None:
        return ""
    if not row.steady:
        return f"alone, one image: ~{row.int8_ms:.3f} ms on integers, ~{row.fp32_ms:.3f} ms in fp32: the machine had other work"
    return f"alone, one image: {row.int8_ms:.3f} ms on integers, {row.fp32_ms:.3f} ms in fp32"


def field(name: str, spec: LayerSpec) -> str:
    weights, activations = spec.weights, spec.activations
    if weights is None:
        return "fp32" if name == "weight bits" else NONE
    if name == "weight bits":
        return f"int{weights.bits}"
    if name == "granularity":
        return f"group {weights.group_size}" if weights.granularity == "per-group" else weights.granularity
    if name == "weight scale":
        return "minmax" if weights.method == "nearest" else weights.method
    if name == "mapping" and (activations is None or activations.dynamic) and not weights.symmetric:
        return "affine weights"
    if activations is not None and activations.dynamic and name in ("activations", "mapping", "observer"):
        return {"activations": f"int{activations.bits} dynamic", "mapping": "symmetric", "observer": NONE}[name]
    if name == "activations":
        return f"int{activations.bits}" if activations else "fp32"
    return _of_activations(name, activations)


def _of_weights(spec: LayerSpec) -> str:
    return NONE if spec.weights is None else "symmetric weights" if spec.weights.symmetric else "affine weights"


def _of_activations(name: str, activations: ActivationSpec | None) -> str:
    if activations is None:
        return NONE
    return mapping(activations) if name == "mapping" else activations.observer


def reading(draft: Draft, row: LayerRow, figures: Mapping[str, Any]) -> str:
    """Everything about a layer, as text to read."""
    lines = [why, ""] if (why := draft.why(row)) else []
    for line in detail(draft, row):
        name, now, proposed, then = (cell.text if isinstance(cell, Cell) else cell for cell in (*line.cells, "", "", "")[:4])
        before = "" if proposed in ("", now, NONE) else f"proposed {proposed.removesuffix(' weights')}"
        if len(now) > _NOW and then:
            # What runs the layer may have a long name: its key stands below.
            lines += [f"{name:<14}{now}", f"{'':<14}{'':<{_NOW}} {before:<22} {then}"]
        else:
            lines.append(f"{name:<14}{now:<{_NOW}} {before:<22} {then}".rstrip())
    if limit := draft.actual(row.path)[1]:
        lines += ["", limit]
    if alone(row):
        lines += ["", alone(row)]
    if figures.get("sqnr_db") is not None:
        own = f", {figures['own_sqnr_db']:.1f} dB of its own" if figures.get("own_sqnr_db") is not None else ""
        lines += ["", f"measured as {figures.get('actual', '')}: SQNR {figures['sqnr_db']:.1f} dB{own}"]
    return "\n".join(lines)


def diff_text(draft: Draft) -> str:
    """What differs from the proposal, and what it does to the size."""
    changes = draft.diff()
    if not changes:
        return "Every layer is as proposed."
    lines = []
    for change in changes:
        alone = draft.edit("reset", [change.path]).draft
        effect = difference(draft.predicted_bytes - alone.predicted_bytes)
        lines.append(f"{change.path}   {effect}\n  {change.proposed}\n  → {change.wanted}")
    return "\n".join(lines)
