"""What the strategy screen says: title, running total, the sentence under the cursor, and everything about a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from engine.events.event import LayerRow
from engine.planning.sensitivity import Sensitivity
from engine.recipe.spec import LayerSpec
from qtui import text
from qtui.draft import Draft
from qtui.edits import EditName
from qtui.screens.strategy_detail import FIELDS, alone, difference, field
from qtui.screens.strategy_rows import NONE, Figures
from qtui.screens.strategy_tree import Entry
from qtui.spec_words import spelled


def title(draft: Draft, width: int, shown: str = "", hidden: int = 0) -> str:
    """The pane's title with its counts; ``shown`` is how many layers a filter leaves, ``hidden`` how many marked ones are not in view."""
    edited = len(draft.edited)
    counts = [f"{draft.quantized} layer{'' if draft.quantized == 1 else 's'} quantized", f"{draft.kept} kept in fp32", f"{edited} edited"]
    if width < 80:
        counts = [f"{draft.quantized} quantized", f"{draft.kept} fp32", f"{edited} edited"][:: 1 if width >= 60 else 2]
    if shown:
        counts.insert(0, shown)
    if draft.preset != "default" and width >= 80:
        counts.insert(0, draft.preset)
    if draft.marked:
        marks = _marks(draft, hidden)
        # What keys are for comes before what can be counted elsewhere.
        if hidden and width < 100:
            counts = [f"{draft.quantized} quantized", f"{edited} edited"] if width >= 60 else []
            counts = [shown, *counts] if shown else counts
        counts.append(marks)
    return " ─ ".join(["Strategy", *counts])


def _marks(draft: Draft, hidden: int) -> str:
    return f"{len(draft.marked)} marked" + (f", {hidden} not in view" if hidden else "")


def total(draft: Draft, width: int) -> str:
    """The predicted size: ``2.18 → 0.31 MB · 7.0× smaller``."""
    before, after = draft.plan.fp32_bytes, max(draft.predicted_bytes, 1)
    change = f"{before / after:.1f}× smaller" if after <= before else f"{after / before:.1f}× larger"
    sizes = f"{text.size(before)} → {text.size(after)}"
    if sizes.count(" MB") == 2:
        sizes = sizes.replace(" MB", "", 1)
    return f"{sizes} · {change}" if width >= 60 else sizes


def sentence(
    draft: Draft,
    entry: Entry | None,
    room: int,
    closed: bool = False,
    hidden: int = 0,
    estimates: Sensitivity | None = None,
    searched: str = "",
) -> str:
    """What the line under the cursor is, why, and what the next keys would do: as much as goes into ``room`` cells. While layers are
    marked the keys are for them, wherever the cursor is; ``hidden`` of them are not in view. With ``estimates`` also how much noise a
    layer adds, and would add. ``searched`` are the bounds within which the next key has a plan searched for."""
    if draft.marked:
        return _about_marked(draft, entry, room, hidden)
    if entry is None:
        return ""
    row = None if entry.module else draft.layer(entry.paths[0])
    if row is None:
        return _about_module(draft, entry, closed, room, searched)
    said, note = _about(draft, row)
    if len(said) > room and row.path in draft.edited:
        wanted = draft.specs[row.path]
        said = f"{_name(row)}: {spelled(wanted)}. d lists its {len(_changed(wanted, row.proposed))} changes to the proposal."
    hints = _hints(draft, row, estimates)
    for more, join in ((note, " "), *((hint, " " if hint is hints[0] else " · ") for hint in hints)):
        if more and len(said) + len(join) + len(more) <= room:
            said += join + more
    return said


def target(draft: Draft | None, entry: Entry | None) -> str:
    """Which layers the keys that edit are for, in a few words."""
    if draft is None:
        return ""
    if draft.marked:
        return f"Keys are for the {len(draft.marked)} marked."
    if entry is None:
        return ""
    return f"Keys are for all layers of {entry.name}." if entry.module else f"Keys are for {entry.name}."


def _about_marked(draft: Draft, entry: Entry | None, room: int, hidden: int) -> str:
    first = entry.paths[0] if entry and not entry.module else None
    said = f"{_marks(draft, hidden)}: {_would(draft, 'weights', 'w', first)}"
    more = [_would(draft, "activations", "a", first), _would(draft, "keep", "f", first), "' next mark", "x unmarks"]
    for hint in more:
        if len(said) + 3 + len(hint) <= room:
            said += f" · {hint}"
    return said


def _would(draft: Draft, name: EditName, key: str, first: str | None) -> str:
    """What a key would make of all marked layers, and of how many of them where some stay: ``w → int3, same size``."""
    outcome = draft.edit(name, draft.marked, first)
    if not outcome.changed:
        return f"{key} changes nothing"
    specs = {outcome.draft.specs[path] for path in outcome.changed}
    became = {_part_of(spec, name) for spec in specs}
    what = became.pop() if len(became) == 1 else "as each was"
    some = f" of {len(outcome.changed)}" if len(outcome.changed) < len(draft.marked) else ""
    return f"{key} → {what}{some}, {difference(outcome.draft.predicted_bytes - draft.predicted_bytes)}"


def _part_of(spec: LayerSpec, name: EditName) -> str:
    if name == "activations":
        return f"{field('activations', spec)} activations"
    return f"int{spec.weights.bits}" if spec.weights else "fp32"


def _about_module(draft: Draft, entry: Entry, closed: bool, room: int, searched: str) -> str:
    inside = [path for path in entry.paths if path in draft.specs]
    kept = sum(draft.specs[path].weights is None for path in inside)
    what = f"{entry.name}: {len(inside)} layers to quantize" + (f", {kept} kept in fp32" if kept else "")
    edits = f", {count} edited" if (count := len(draft.edited.intersection(inside))) else ""
    said = f"{what}{edits}. A key here changes all of them; {'l opens' if closed else 'h closes'} it, j goes down to one layer."
    hint = f" n searches a plan of {searched}." if searched else " P plans within a size."
    return said + hint if len(said) + len(hint) <= room else said


def _name(row: LayerRow) -> str:
    return text.in_block(row.path) if row.capabilities.between_floats else row.path


def _about(draft: Draft, row: LayerRow) -> tuple[str, str]:
    """What a layer is to become and why; and what to know of that."""
    name = _name(row)
    if row.path not in draft.specs:
        return f"{name}: {row.kind}, {row.obstacle or 'it stays as it is'}.", ""
    wanted, limit = draft.specs[row.path], draft.actual(row.path)[1]
    if wanted == row.requested:
        return _ended(f"{name}: {draft.why(row) or spelled(wanted)}"), ""
    if wanted == row.proposed:
        return f"{name}: as proposed, {spelled(wanted)}.", _sentence(limit or row.proposed_why)
    changes = [f"{_named(one, wanted)} instead of {field(one, row.proposed)}" for one in _changed(wanted, row.proposed)]
    slower = f"slower here than fp32, {alone(row)}" if row.slower and wanted.weights and wanted.activations else ""
    return f"{name}: {', '.join(changes)}.", _sentence(slower or _effect(wanted, row) or limit or "")


def _sentence(said: str) -> str:
    return _ended(f"{said[:1].upper()}{said[1:]}")


def _ended(said: str) -> str:
    return f"{said}." if said and not said.endswith(".") else said


def _changed(wanted: LayerSpec, proposed: LayerSpec) -> list[str]:
    """The fields that differ, one where the others follow from it."""
    names = [name for name, _, _ in FIELDS if field(name, wanted) != field(name, proposed)]
    if "weight bits" in names and None in (wanted.weights, proposed.weights):
        return ["weight bits"]
    return [name for name in names if NONE not in (field(name, wanted), field(name, proposed))]


def _named(name: str, spec: LayerSpec) -> str:
    value = field(name, spec)
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
    if weights.bits == 4 and weights.method == "nearest":
        return "four bits are better with m, the scale of least squared error"
    if weights.granularity == "per-tensor":
        return "one scale for all channels: small channels lose most"
    if activations.bits <= 4:
        return "so few bits for activations usually need training"
    return ""


def weights_db(estimates: Sensitivity | None, path: str, spec: LayerSpec) -> str:
    """The estimated SQNR of a layer's output with its weights as ``spec`` has them: ``24 dB``; empty where it is not known."""
    found = estimates.of(path).get(f"w{spec.weights.bits}") if estimates is not None and spec.weights and not spec.weights.format else None
    return f"{found.noise_db:.0f} dB" if found is not None and math.isfinite(found.noise_db) else ""


def _hints(draft: Draft, row: LayerRow, estimates: Sensitivity | None = None) -> list[str]:
    """What the next keys would make of a layer."""
    if row.path not in draft.specs:
        return []
    spec = draft.specs[row.path]
    before = draft.predicted_bytes
    hints = []
    if spec.weights is None:
        again = draft.edit("keep", [row.path]).draft
        return [f"f {spelled(again.specs[row.path])}, {difference(again.predicted_bytes - before)}"]
    if row.path in draft.edited:
        hints.append("z as proposed")
    for key, name in (("w", "weights"), ("f", "keep")):
        after = draft.edit(name, [row.path]).draft  # type: ignore[arg-type]
        bits = after.specs[row.path].weights
        noise = weights_db(estimates, row.path, after.specs[row.path])
        what = f"int{bits.bits}" if bits else "fp32"
        hints.append(", ".join(filter(None, (f"{key} {what}", difference(after.predicted_bytes - before), noise))))
    return hints


def figures_of(layers: Mapping[str, tuple[Mapping[str, Any], ...]]) -> Figures:
    """What was measured of each layer, of the trained model where there is one."""
    return {str(row.get("name")): row for row in layers.get("qat") or layers.get("ptq") or ()}
