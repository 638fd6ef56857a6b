"""What the report tells of a graph: its folds, its layers, and what computes in fp32 between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from engine.events.event import LayerRow, Table
from engine.lowering.graph.fuse import Pair
from engine.lowering.graph.kinds import kind, module_of
from engine.lowering.graph.layer_noise import LayerNoise
from engine.lowering.graph.layout import CARRIES, Layout
from engine.lowering.graph.plan import stored_label
from engine.lowering.graph.runtime import QuantizedModel
from engine.lowering.graph.tracing import TracedModel
from engine.planning.plan import Plan
from engine.recipe.recipe import Recipe

IN_FLOAT = "no integer kernel for this operation: fp32 between integer layers"
BETWEEN = "it has no matrix: a factor and a shift for each channel, from integers to integers"
NOT_ITS_OWN = "its weight is computed, or read by others too: only a weight that is this layer's alone becomes integers"


def graph(traced: TracedModel, pairs: tuple[Pair, ...], delta: float, recipe: Recipe) -> dict[str, Any]:
    later = {} if recipe.quantize_first or not recipe.fold_later else {"later": list(recipe.fold_later)}
    return {
        "nodes": len(traced.graph.graph.nodes), "trace_delta": traced.max_abs_delta,
        "fused": [{"conv": p.conv, "bn": p.bn, "max_abs_delta": p.max_abs_delta} for p in pairs if p.max_abs_delta is not None],
        "refused": [{"conv": p.conv, "bn": p.bn, "reason": p.reason} for p in pairs if p.reason is not None],
        "fuse_delta": delta, "order": "quantize-first" if recipe.quantize_first else "fuse-first", **later,
        "untraced": [{"path": u.path, "kind": u.kind, "reason": u.reason, "where": u.where} for u in traced.untraced],
    }  # fmt: skip


def layers(
    plan: Plan, layout: Layout, model: QuantizedModel, sqnr: Mapping[str, LayerNoise], notes: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """The coverage of every layer: asked for, done, on what, and why. ``notes`` say of layer nodes how they were rounded."""
    units = {unit.path: unit.layer for unit in reversed(layout.units)}
    folded = {unit.bn: unit.layer for unit in layout.units if unit.bn}
    between = _between(layout, model)
    return [
        _layer(layer, units.get(layer.path), folded.get(layer.node), model, sqnr, (notes or {}).get(layer.node))
        | between.get(layer.node, {})
        for layer in plan.layers
    ]


def _between(layout: Layout, model: QuantizedModel) -> dict[str, dict[str, Any]]:
    """What differs in the rows of normalizations that are steps of their own on integers, by node: where a kernel computes them."""
    if not model.step_kernel:
        return {}
    classes = layout.class_of()
    return {
        affine.norm: {"actual": f"factor and shift, {classes[affine.output].spec}", "kernel": model.step_kernel, "reason": BETWEEN}
        for affine in layout.affines
    }


def _layer(
    layer: LayerRow, unit: str | None, folded: str | None, model: QuantizedModel, sqnr: Mapping[str, LayerNoise], note: str | None
) -> dict[str, Any]:
    inside = unit or folded
    kernel, refusal = model.placement[inside] if inside else ("torch fp32", None)
    if inside is None and layer.actual.weights:
        kernel = stored_label(layer.actual.weights.bits)
    return {
        "name": layer.path, "kind": layer.kind, "requested": str(layer.requested), "actual": "folded" if folded else str(layer.actual),
        "kernel": kernel, "reason": "; ".join(filter(None, (layer.why, refusal if unit else None, note))), "rule": layer.rule,
        **_noise(sqnr.get(unit) if unit else None), "params": layer.params, "time_share": round(layer.time_share, 4),
        "speedup": {"int8_ms": layer.int8_ms, "fp32_ms": layer.fp32_ms} if layer.int8_ms and layer.steady else None,
    }  # fmt: skip


def operations(gm: fx.GraphModule, model: QuantizedModel) -> list[dict[str, Any]]:
    """What computes in fp32 between the layers, by operation: no module of parameters, so the coverage of layers lacks it."""
    steps = {step.output for step in model.program.steps if step.op in ("call", "module")}
    found: Counter[tuple[str, str]] = Counter()
    for node in gm.graph.nodes:
        module = module_of(node)
        moves = kind(node) in (*CARRIES, "get_attr") or (module is not None and any(True for _ in module.parameters()))
        if node.name in steps and node.meta.get("dtype") == torch.float32 and not moves:
            name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
            reason = NOT_ITS_OWN if kind(node).startswith("functional_") else IN_FLOAT
            found[name.strip("_"), reason] += 1
    return [{"operation": name, "count": count, "reason": reason} for (name, reason), count in found.most_common()]


def _noise(noise: LayerNoise | None) -> dict[str, float | None]:
    return {"sqnr_db": noise.sqnr_db if noise else None, "own_sqnr_db": noise.own_sqnr_db if noise else None}


def layer_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    def text(row: Mapping[str, Any]) -> tuple[str, ...]:
        sqnr = "" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
        return row["name"], row["actual"], row["kernel"], sqnr, f"{row['params']:,}", f"{100 * row['time_share']:.1f}"

    columns = ("layer", "runs as", "on", "SQNR dB", "params", "fp32 time %")
    return Table("layers", f"Layers ─ {len(rows)}", columns, tuple(text(row) for row in rows))
