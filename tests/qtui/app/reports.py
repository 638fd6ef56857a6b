"""Folders of finished runs for tests: what a run leaves behind, as far as the report's screens read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripted_engine import MEASURED, report

FP32_LAYER = {
    "name": "stem.conv", "kind": "Conv2d", "requested": "w8 per-channel, a8 per-tensor", "actual": "fp32", "kernel": "torch fp32",
    "reason": "its groups do not divide its channels", "rule": "proposal", "sqnr_db": None, "params": 432, "time_share": 0.02,
}  # fmt: skip
FOLDED_LAYER = {**FP32_LAYER, "name": "stem.bn", "kind": "BatchNorm2d", "requested": "fp32", "actual": "folded", "reason": "", "params": 32}


def told(**changes: Any) -> dict[str, Any]:
    """The scripted engine's report with keys replaced."""
    found: dict[str, Any] = json.loads(json.dumps(report("")))
    return {**found, **changes}


def measured(value: float, size: int, p50: float, **more: Any) -> dict[str, Any]:
    return {**MEASURED["ptq"], "value": value, "size_bytes": size, "latency_ms": {"p50": p50, "p95": p50, "batch": 1}, **more}


def write_run(root: Path, name: str, found: Mapping[str, Any] | str, recipe: str | None = "preset: default\nrules: []\n") -> Path:
    """A finished run's folder; ``found`` is its report, or a text that is none."""
    directory = root / name
    directory.mkdir(parents=True)
    (directory / "events.jsonl").write_text("")
    (directory / "report.json").write_text(found if isinstance(found, str) else json.dumps(found))
    about = {"started": f"2026-01-02T03:04:{len(list(root.iterdir())):02d}", "state": "finished", "pid": 1, "text": ""}
    (directory / "state.json").write_text(json.dumps({**about, "model": "simplecnn", "data": "digits"}))
    if recipe is not None:
        (directory / "recipe.yaml").write_text(recipe)
    return directory
