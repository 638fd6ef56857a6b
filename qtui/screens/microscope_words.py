"""What the microscope says of a layer. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.events.event import LayerRow, RangeRow
from engine.events.rows import RoundedLayer
from engine.recipe.spec import LayerSpec, WeightSpec
from qtui import text
from qtui.draft import Draft
from qtui.screens.calibrate_layers import HARMFUL_DB
from qtui.screens.calibrate_ranges import cut_off, figure
from qtui.spec_words import spelled
from qtui.state import Run

STANDS_OUT = 4.0
NOT_KEPT = (
    "This run kept no look at its layers: those that are begun in the app do, and one that waits at its strategy looks when it is asked"
)
_LEAST_CLIPPED = 5e-6


def wanted(draft: Draft, path: str) -> LayerSpec | None:
    """What the layer is looked at as: as this machine has it by the draft, one that is kept in fp32 as with 8 bits; None where it has no
    weights to round."""
    row = draft.layer(path)
    if row is None or path not in draft.specs or row.tied is not None:
        return None
    actual = draft.actual(path)[0]
    if actual.weights is not None:
        return actual
    return row.proposed if row.proposed.weights is not None else LayerSpec(WeightSpec(8, "per-channel"), None)


def same(found: RoundedLayer | None, spec: LayerSpec | None) -> bool:
    """Whether what was looked at is the layer as ``spec`` has it, but for a method that needs more than the weights."""
    if found is None or spec is None or found.spec.weights is None or spec.weights is None:
        return False
    return replace(found.spec, weights=replace(found.spec.weights, method=spec.weights.method)) == spec


def values_of(run: Run, path: str) -> RangeRow | None:
    """What the layer reads: as it was looked at, or as the calibration saw it."""
    found = run.inspected.get(path)
    if found is not None and found.values is not None:
        return found.values
    return next((row for row in run.ranges.rows if path in row.layers), None) if run.ranges is not None else None


def weights_title(found: RoundedLayer) -> str:
    """``weights ─ w4 ─ 20.1 dB ─ 12 % become 0 ─ 0.3 % clipped``."""
    parts = ["weights", spelled(replace(found.spec, activations=None)).partition(" · ")[0]]
    if math.isfinite(found.sqnr_db):
        parts.append(f"{found.sqnr_db:.1f} dB")
    parts.append(f"{_part(found.zeros)} become 0")
    if found.clipped > _LEAST_CLIPPED:
        parts.append(f"{_part(found.clipped)} clipped")
    return " ─ ".join(parts)


def channels_title(found: RoundedLayer) -> str:
    """``64 channels ─ 2 stand out``."""
    out = f"{found.standing_out} stand{'s' if found.standing_out == 1 else ''} out" if found.standing_out else "none stands out"
    return f"{found.channels:,} channels by their magnitude ─ {out}"


def outliers(found: RoundedLayer) -> str:
    """``12 −0.90…1.31, 3 …``: the channels that stand out, by their numbers."""
    said = [f"{one.index} ({figure(one.low)}…{figure(one.high)})" for one in found.outliers]
    rest = found.standing_out - len(found.outliers)
    return ", ".join(said) + (f" and {rest} more" if rest > 0 else "")


def values_title(row: RangeRow | None) -> str:
    """``what it reads ─ 0…6.31 ─ grid to 5.2 ─ 0.12 % clipped``."""
    if row is None:
        return "what it reads"
    parts = ["what it reads", f"{figure(row.low)}…{figure(row.high)}"]
    if (part := cut_off(row)) > _LEAST_CLIPPED:
        parts += [f"grid {figure(row.clip_low)}…{figure(row.clip_high)}", f"{_part(part)} clipped"]
    else:
        parts.append("nothing clipped")
    if row.outliers:
        parts.append(f"{row.outliers} of {row.channels} channels stand out")
    return " ─ ".join(parts)


def times(row: LayerRow | None, measured: Mapping[str, Any]) -> str:
    """``fp32 0.210 ms, int8 0.060 ms: 3.5× faster alone``; empty where the layer was not timed alone."""
    if row is None or row.fp32_ms is None or row.int8_ms is None or not row.int8_ms:
        return ""
    if not row.steady:
        return f"alone, one item: fp32 ~{row.fp32_ms:.3f} ms, integers ~{row.int8_ms:.3f} ms, not steady"
    ratio = row.fp32_ms / row.int8_ms
    how = f"{ratio:.1f}× faster" if ratio >= 1.05 else f"{1 / ratio:.1f}× slower" if ratio < 0.95 else "the same"
    return f"alone, one item: fp32 {row.fp32_ms:.3f} ms, integers {row.int8_ms:.3f} ms, {how}"


def sentence(found: RoundedLayer, values: RangeRow | None, row: LayerRow | None) -> str:
    """What is to be seen, and what helps."""
    name = text.in_block(found.path)
    timed = times(row, {})
    said = []
    if found.standing_out:
        said.append(f"{name}: {_channels(found.standing_out)} {STANDS_OUT:.0f} times the median: {outliers(found)}")
        if found.spec.weights is not None and found.spec.weights.granularity == "per-tensor":
            said.append("one scale for all serves them alone: c gives each its own")
    elif math.isfinite(found.sqnr_db) and found.sqnr_db < HARMFUL_DB:
        said.append(f"{name}: rounding adds noise at {found.sqnr_db:.1f} dB, and no channel is to blame: w, c or m on the strategy help")
    else:
        said.append(f"{name}: no channel of its weights stands out")
    if values is not None and values.outliers:
        said.append(f"{values.outliers} of {values.channels} channels of what it reads hold its range wide")
    if timed:
        said.append(f"{timed[:1].upper()}{timed[1:]}")
    return ". ".join(said) + "."


def _channels(count: int) -> str:
    return "1 channel has more than" if count == 1 else f"{count} channels have more than"


def _part(part: float) -> str:
    """A part in per cent, in two digits: ``12 %``, ``0.31 %``, ``<0.01 %``."""
    return "<0.01 %" if 0 < part < 1e-4 else f"{100 * part:.0f} %" if part >= 0.1 or part == 0 else f"{100 * part:.2g} %"
