"""Whether a timing can be taken at its word: pure functions of what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SPREAD = 1.5
"""How many times the median the 95th percentile may be."""
ABOUT = "~"


def spread(p50: float | None, p95: float | None) -> bool:
    """Whether the slowest calls took far longer than the usual one."""
    return p50 is not None and p95 is not None and p95 > _SPREAD * p50


def unsteady(found: Mapping[str, Any]) -> bool:
    """Whether the times of a form or a runtime are not steady: one of them spreads, or a batch took less than one image of it."""
    single, batched = ((_figure(found, key, "p50"), _figure(found, key, "p95")) for key in ("latency_ms", "latency_batched_ms"))
    return spread(*single) or spread(*batched) or backwards(_batch(found), single[0], batched[0])


def backwards(batch: float, single: float | None, batched: float | None) -> bool:
    """Whether many images took less time than one does."""
    return batch > 1 and single is not None and batched is not None and batched < single


def _batch(found: Mapping[str, Any]) -> float:
    # A language model is timed by the token and by the prompt: the second is no batch of the first.
    return (_figure(found, "latency_batched_ms", "batch") or 1) if "tokens_per_second" not in found else 1


def _figure(found: Mapping[str, Any], *keys: str) -> float | None:
    value: Any = found
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
