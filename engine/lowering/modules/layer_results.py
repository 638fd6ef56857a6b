"""What became of each layer of a decoder, as the report's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.events.event import LayerRow
from engine.lowering.modules.progress import MatrixQuantized
from engine.lowering.modules.runtime import Placement
from engine.planning.plan import Plan


def layer_results(plan: Plan, matrices: Mapping[str, MatrixQuantized], placement: Mapping[str, Placement]) -> list[dict[str, Any]]:
    """The coverage of every layer: asked for, done, on what, and why."""
    return [_layer(row, matrices.get(row.tied or row.path), placement.get(row.path)) for row in plan.layers]


def _layer(row: LayerRow, matrix: MatrixQuantized | None, placed: Placement | None) -> dict[str, Any]:
    sqnr = matrix.sqnr_db if matrix and row.actual.weights else None
    kernel, refusal, _ = placed or Placement("torch fp32", None, False)
    notes = [row.why, refusal, matrix.note if matrix else None]
    notes.append(f"its scale is folded into {matrix.folded_into}" if matrix and matrix.folded_into else None)
    return {
        "name": row.path, "kind": row.kind, "requested": str(row.requested), "actual": str(row.actual), "kernel": kernel,
        "reason": "; ".join(dict.fromkeys(filter(None, notes))), "rule": row.rule,
        "sqnr_db": sqnr, "own_sqnr_db": sqnr, "params": row.params,
        "time_share": round(row.time_share, 4), "speedup": None,
        **({"bytes": matrix.bytes} if matrix and row.actual.weights and not row.tied else {}),
    }  # fmt: skip


def layer_cells(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], ...]:
    """The rows as texts: layer, what it runs as, on what, SQNR, parameters, part of the time."""
    return tuple(
        (
            row["name"], row["actual"], row["kernel"], "" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}", f"{row['params']:,}",
            f"{100 * row['time_share']:.1f}",
        )
        for row in rows
    )  # fmt: skip
