"""What the strategy screen says: title, running total, the sentence under the cursor, and everything about a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.events import LayerRow
from engine.spec import ActivationSpec, LayerSpec, Rule, WeightSpec
from qtui import text
from qtui.draft import Draft
from qtui.drawing.rows import Cell, Column, Row
from qtui.edits import EditName, inputs
from qtui.screens.strategy_rows import NONE, Figures, kernel_of, mapping
from qtui.screens.strategy_tree import Entry

PRESET_TEXTS: Mapping[str, str] = {
    "default": "as proposed: 8 bits, large linear layers 4",
    "w8a8": "8-bit weights and activations: the safest",
    "w4a8": "4-bit weights, 8-bit activations",
    "w4a4": "4 bits for both: usually needs training",
    "w8": "8-bit weights alone, computed in fp32",
    "w4": "4-bit weights alone, computed in fp32",
    "w3": "3-bit weights alone: usually needs training",
}


_DECODER_TEXTS: Mapping[str, str] = {
    "default": "8-bit weights, activations rounded as they come: fast, next to no loss",
    "w8a8": "the same after SmoothQuant: for models with outlier channels",
    "w8a8-static": "activations on grids from calibration, after SmoothQuant",
    "w8": "8-bit weights alone: stored small, computed in floats",
    "w4a8": "4-bit weights in groups of 64, 8-bit activations: small and fast",
    "w4": "4-bit weights in groups of 64: small, computed in floats",
    "w3": "3-bit weights in groups of 64: usually needs training",
}


def title(draft: Draft, width: int, shown: str = "") -> str:
    """The pane's title with its counts; ``shown`` is how many layers a filter leaves."""
    edited = len(draft.edited)
    counts = [f"{draft.quantized} layers quantized", f"{draft.kept} kept in fp32", f"{edited} edited"]
    if width < 80:
        counts = [f"{draft.quantized} quantized", f"{draft.kept} fp32", f"{edited} edited"][:: 1 if width >= 60 else 2]
    if shown:
        counts.insert(0, shown)
    if draft.preset != "default" and width >= 80:
        counts.insert(0, draft.preset)
    if draft.marked:
        counts.append(f"{len(draft.marked)} marked")
    return " ─ ".join(["Strategy", *counts])


def total(draft: Draft, width: int) -> str:
    """The predicted size: ``2.18 → 0.31 MB · 7.0× smaller``."""
    before, after = draft.plan.fp32_bytes, max(draft.predicted_bytes, 1)
    change = f"{before / after:.1f}× smaller" if after <= before else f"{after / before:.1f}× larger"
    sizes = f"{text.size(before)} → {text.size(after)}"
    if sizes.count(" MB") == 2:
        sizes = sizes.replace(" MB", "", 1)
    return f"{sizes} · {change}" if width >= 60 else sizes


def presets(draft: Draft, own: Sequence[Rule]) -> list[tuple[str, str]]:
    """The presets to choose from, each with the size that it would give."""
    found = []
    decoder = any(row.decoder for row in draft.plan.layers)
    for name, about in (_DECODER_TEXTS if decoder else PRESET_TEXTS).items():
        size = text.size(draft.planned_from(name, own).predicted_bytes)
        found.append((name, f"{name:<{12 if decoder else 8}}{size:>9}  {about}"))
    return found


def difference(count: int) -> str:
    """Bytes more or less: ``−12.30 kB``."""
    if not count:
        return "same size"
    return f"{'+' if count > 0 else '−'}{text.size(abs(count))}"


def spec_text(spec: LayerSpec) -> str:
    """A spec in words: ``int4 group 32, int8 affine activations``."""
    if spec.weights is None:
        return "fp32"
    activations = (
        f"int{spec.activations.bits} {'dynamic' if spec.activations.dynamic else mapping(spec.activations)} activations"
        if spec.activations
        else "fp32 activations"
    )
    return f"{scheme_text(spec.weights)}, {activations}"


def scheme_text(weights: WeightSpec) -> str:
    groups = f"group {weights.group_size}" if weights.granularity == "per-group" else weights.granularity
    method = "mse" if weights.scale == "mse" else "" if weights.method == "nearest" else weights.method
    return " ".join(filter(None, (f"int{weights.bits} {groups}", "" if weights.symmetric else "affine", method)))


def sentence(draft: Draft, entry: Entry | None, room: int, closed: bool = False) -> str:
    """What the line under the cursor is, why, and what the next keys would do: as much as goes into ``room`` cells."""
    if entry is None:
        return ""
    row = None if entry.module else draft.layer(entry.paths[0])
    if row is None:
        return _about_module(draft, entry, closed)
    said, note = _about(draft, row)
    hints = _hints(draft, row)
    for more, join in ((note, " "), *((hint, " " if hint is hints[0] else " · ") for hint in hints)):
        if more and len(said) + len(join) + len(more) <= room:
            said += join + more
    return said


def _about_module(draft: Draft, entry: Entry, closed: bool) -> str:
    inside = [path for path in entry.paths if path in draft.specs]
    kept = sum(draft.specs[path].weights is None for path in inside)
    what = f"{entry.name}: {len(inside)} layers to quantize" + (f", {kept} kept in fp32" if kept else "")
    edits = f", {count} edited" if (count := len(draft.edited.intersection(inside))) else ""
    return f"{what}{edits}. A key here changes all of them; {'l opens' if closed else 'h closes'} it, j goes down to one layer."


def _about(draft: Draft, row: LayerRow) -> tuple[str, str]:
    """What a layer is to become and why; and what to know of that."""
    if row.path not in draft.specs:
        return f"{row.path}: {row.kind}, {row.obstacle or 'it stays as it is'}.", ""
    wanted, limit = draft.specs[row.path], draft.actual(row.path)[1]
    if wanted == row.requested:
        return _ended(f"{row.path}: {row.why or spec_text(wanted)}"), ""
    if wanted == row.proposed:
        return f"{row.path}: as proposed, {spec_text(wanted)}.", _sentence(limit or row.proposed_why)
    changes = [f"{_named(name, wanted)} instead of {_field(name, row.proposed)}" for name in _changed(wanted, row.proposed)]
    slower = f"slower here than fp32, {alone(row)}" if row.slower and wanted.weights and wanted.activations else ""
    return f"{row.path}: {', '.join(changes)}.", _sentence(slower or _effect(wanted, row) or limit or "")


def _sentence(said: str) -> str:
    return _ended(f"{said[:1].upper()}{said[1:]}")


def _ended(said: str) -> str:
    return f"{said}." if said and not said.endswith(".") else said


def _changed(wanted: LayerSpec, proposed: LayerSpec) -> list[str]:
    """The fields that differ, one where the others follow from it."""
    names = [name for name, _, _ in _FIELDS if _field(name, wanted) != _field(name, proposed)]
    if "weight bits" in names and None in (wanted.weights, proposed.weights):
        return ["weight bits"]
    return [name for name in names if NONE not in (_field(name, wanted), _field(name, proposed))]


def _named(name: str, spec: LayerSpec) -> str:
    value = _field(name, spec)
    if name == "weight bits" and spec.weights is None:
        return "kept in fp32"
    return {"weight bits": f"{value} weights", "weight scale": f"{value} scale", "activations": f"{value} activations"}.get(name, value)


def _effect(spec: LayerSpec, row: LayerRow) -> str:
    """What a newcomer should know of such a spec."""
    weights, activations = spec.weights, spec.activations
    if weights is None:
        return "it computes as before and saves nothing"
    if activations is None:
        return "weight-only: a smaller file, computed in fp32"
    if weights.bits in (5, 6, 7):
        return f"{weights.bits} bits take a byte each, as 8 do"
    if weights.bits < 4:
        return f"{weights.bits} bits take half a byte each, as 4 do"
    if weights.bits == 4 and weights.scale == "minmax":
        return "four bits are better with m, the scale of least squared error"
    if weights.granularity == "per-tensor":
        return "one scale for all channels: small channels lose most"
    if activations.bits <= 4:
        return "so few bits for activations usually need training"
    return ""


def _hints(draft: Draft, row: LayerRow) -> list[str]:
    """What the next keys would make of a layer."""
    if row.path not in draft.specs:
        return []
    spec = draft.specs[row.path]
    before = draft.predicted_bytes
    hints = []
    if spec.weights is None:
        again = draft.edit("keep", [row.path]).draft
        return [f"f {spec_text(again.specs[row.path])}, {difference(again.predicted_bytes - before)}"]
    if row.path in draft.edited:
        hints.append("z as proposed")
    for key, name in (("w", "weights"), ("f", "keep")):
        after = draft.edit(name, [row.path]).draft  # type: ignore[arg-type]
        bits = after.specs[row.path].weights
        hints.append(f"{key} {f'int{bits.bits}' if bits else 'fp32'}, {difference(after.predicted_bytes - before)}")
    return hints


_FIELDS: tuple[tuple[str, EditName, str], ...] = (
    ("weight bits", "weights", "w"), ("granularity", "granularity", "c"), ("weight scale", "rounding", "m"),
    ("activations", "activations", "a"), ("mapping", "symmetric", "s"), ("observer", "observer", "r"),
)  # fmt: skip

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


def detail_title(draft: Draft, row: LayerRow) -> str:
    out = row.weight_shape[0] if row.weight_shape else 0
    shape = f" ─ {inputs(row):,} inputs to each of {out:,} outputs" if row.editable and out else ""
    return f"{row.path} ─ {row.kind}{shape} ─ {row.params:,} parameters"


def detail(draft: Draft, row: LayerRow) -> tuple[Row, ...]:
    """Each field of a layer: what it is now, what was proposed, what its key would make of it."""
    if row.path not in draft.specs:
        return (Row("why", ("", f"{row.obstacle or 'it stays as it is'}"), selectable=False),)
    spec, found = draft.specs[row.path], []
    for name, edit, key in _FIELDS:
        now, proposed = _field(name, spec), _field(name, row.proposed)
        after = _field(name, draft.edit(edit, [row.path]).draft.specs[row.path])
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
    return f"alone, one image: {row.int8_ms:.3f} ms on integers, {row.fp32_ms:.3f} ms in fp32"


def _field(name: str, spec: LayerSpec) -> str:
    weights, activations = spec.weights, spec.activations
    if weights is None:
        return "fp32" if name == "weight bits" else NONE
    if name == "weight bits":
        return f"int{weights.bits}"
    if name == "granularity":
        return f"group {weights.group_size}" if weights.granularity == "per-group" else weights.granularity
    if name == "weight scale":
        return weights.scale if weights.method == "nearest" else weights.method
    if name == "mapping" and (activations is None or activations.dynamic) and not weights.symmetric:
        return "affine weights"
    if activations is not None and activations.dynamic and name in ("activations", "mapping", "observer"):
        return {"activations": f"int{activations.bits} dynamic", "mapping": "per token", "observer": NONE}[name]
    if name == "activations":
        return f"int{activations.bits}" if activations else "fp32"
    return _of_activations(name, activations)


def _of_activations(name: str, activations: ActivationSpec | None) -> str:
    if activations is None:
        return NONE
    return mapping(activations) if name == "mapping" else activations.observer


def reading(draft: Draft, row: LayerRow, figures: Mapping[str, Any]) -> str:
    """Everything about a layer, as text to read."""
    lines = [row.why, ""] if row.why else []
    for line in detail(draft, row):
        name, now, proposed, then = (cell.text if isinstance(cell, Cell) else cell for cell in (*line.cells, "", "", "")[:4])
        lines.append(f"{name:<14}{now:<22}{f'proposed {proposed}' if proposed not in ('', now, NONE) else '':<24}{then}".rstrip())
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
    width = max(len(change.path) for change in changes)
    lines = []
    for change in changes:
        alone = draft.edit("reset", [change.path]).draft
        effect = difference(draft.predicted_bytes - alone.predicted_bytes)
        lines.append(f"{change.path:<{width}}  {change.proposed}\n{'':<{width}}  → {change.wanted}   {effect}")
    return "\n".join(lines)


def figures_of(layers: Mapping[str, tuple[Mapping[str, Any], ...]]) -> Figures:
    """What was measured of each layer, of the trained model where there is one."""
    return {str(row.get("name")): row for row in layers.get("qat") or layers.get("ptq") or ()}
