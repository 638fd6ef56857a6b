"""How far from a machine's limits a quantized model is: pure functions of a report. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.report.runtimes import TEXT, paces
from engine.report.steadiness import unsteady


def reached(report: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report's ``limits``: those of the machine, and what each workload reached of them: operations a second of all multiply-adds,
    two to each; bytes a second of the weights, which a call reads once. None where no time is to be taken at its word."""
    trained = report.get("qat")
    form = trained if isinstance(trained, Mapping) and trained.get("kept") else report.get("ptq")
    if not isinstance(form, Mapping) or form.get("simulated") or unsteady(form):
        return None
    text = paces(report) is TEXT
    weights = _read_by_a_token(report) if text else form.get("size_bytes")
    macs = None if text else (report.get("coverage") or {}).get("macs_total")
    rows = []
    for word, key, once in zip(paces(report).words, ("latency_ms", "latency_batched_ms"), (True, False), strict=True):
        time = form.get(key) or {}
        if not time.get("p50"):
            continue
        seconds, row = time["p50"] / 1e3, {"workload": word}
        if macs:
            speed = 2 * macs * (time.get("batch") or 1) / seconds
            row |= {"ops_per_s": speed, "of_peak": round(speed / limits["peak_ops_per_s"], 4)}
        # Of many items, or a prompt, weights are the least of what is moved.
        if once and weights:
            speed = weights / seconds
            row |= {"bytes_per_s": speed, "of_bandwidth": round(speed / limits["read_bytes_per_s"], 4)}
        rows += [row] if len(row) > 1 else []
    return {**limits, "reached": rows} if rows else None


def _read_by_a_token(report: Mapping[str, Any]) -> int | None:
    """Bytes of the matrices that a token is multiplied with: those of embeddings are not, but where the head shares one. None where a
    token reads some experts alone, or sizes are not known."""
    rows = [row for row in report.get("layers") or () if isinstance(row, Mapping)]
    if any(".experts." in str(row.get("name")) for row in rows):
        return None
    looked_up = [row.get("bytes") or 0 for row in rows if row.get("kind") == "Embedding"]
    multiplied = [row for row in rows if row.get("kind") != "Embedding" and str(row.get("actual")) != "fp32"]
    tied = any(not row.get("params") for row in multiplied)
    return sum(row.get("bytes") or 0 for row in multiplied) + (max(looked_up, default=0) if tied else 0) or None


def sentence(found: Mapping[str, Any]) -> str:
    """``found`` in words; empty where it is not what ``reached`` gives."""
    try:
        parts = [f"{row['workload']} {_row(row)}" for row in found["reached"]]
        about = (
            f"{found['peak_ops_per_s'] / 1e9:,.0f} GOP/s in a large int8 product of {found['kernel']}, "
            f"{found['read_bytes_per_s'] / 1e9:.1f} GB/s of a plain read"
        )
        threads = f"{found['threads']} thread{'' if found['threads'] == 1 else 's'}"
    except (KeyError, TypeError, ValueError):
        return ""
    return f"Of what {threads} reach here ({about}, as measured): {'; '.join(parts)}." if parts else ""


def _row(row: Mapping[str, Any]) -> str:
    parts = []
    if "ops_per_s" in row:
        parts.append(f"{row['ops_per_s'] / 1e9:,.1f} GOP/s ({100 * row['of_peak']:.0f} %)")
    if "bytes_per_s" in row:
        parts.append(f"weights at {row['bytes_per_s'] / 1e9:.2f} GB/s ({100 * row['of_bandwidth']:.0f} %)")
    return ", ".join(parts)
