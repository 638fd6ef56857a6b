"""How fast each runtime is, from a report's figures. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# A tenth is within what two measurements of the same thing differ by.
_CLOSE = 1.1


@dataclass(frozen=True)
class Runtime:
    """``single`` and ``batched`` are (p50, p95) in milliseconds at batch 1 and 64; None where they were not measured."""

    name: str
    file: str
    single: tuple[float, float] | None
    batched: tuple[float, float] | None


def runtimes(report: Mapping[str, Any]) -> tuple[Runtime, ...]:
    """The fp32 form and every export that was timed; figures that are missing or odd are passed over."""
    found = []
    baseline = report.get("baseline")
    if isinstance(baseline, Mapping):
        found.append(_runtime(str(baseline.get("kernel") or "fp32"), "", baseline))
    for entry in report.get("exports") or ():
        if isinstance(entry, Mapping):
            name = str(entry.get("runtime") or entry.get("format"))
            how = {"safetensors": "engine.load_quantized", "pt2": "torch.export"}.get(str(entry.get("format")))
            found.append(_runtime(f"{how}, {name}" if how else name, str(entry.get("path") or ""), entry))
    return tuple(one for one in found if one.single or one.batched)


def fastest(report: Mapping[str, Any]) -> str:
    """A sentence that names the runtime to ship for on this machine; empty where there is nothing to choose from."""
    known = runtimes(report)
    parts = []
    for batch, key in ((1, "single"), (64, "batched")):
        timed = [(times[0], one.name) for one in known if (times := getattr(one, key))]
        if len(timed) > 1:
            best, name = min(timed)
            near = [other for time, other in timed if time <= best * _CLOSE and other != name]
            parts.append(f"{name} at batch {batch} ({best:.2f} ms{f', with {near[0]} within a tenth' if near else ''})")
    return f"Fastest on this machine: {'; '.join(parts)}." if parts and len(known) > 2 else ""


def _runtime(name: str, file: str, entry: Mapping[str, Any]) -> Runtime:
    return Runtime(name, file, _times(entry.get("latency_ms")), _times(entry.get("latency_batched_ms")))


def _times(entry: Any) -> tuple[float, float] | None:
    values: list[Any] = [entry.get(key) for key in ("p50", "p95")] if isinstance(entry, Mapping) else []
    if len(values) == 2 and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values):
        return float(values[0]), float(values[1])
    return None
