"""When two measured times differ, and in which words. Torch-free."""

from __future__ import annotations

NOTICEABLE = 1.15
"""Two times whose ratio is less are as good as equal: repeated measurements differ by as much."""


def is_slower(first: float, second: float) -> bool:
    """Whether ``first`` takes longer than ``second``, beyond what repeated measurements differ by."""
    return first > NOTICEABLE * second


def relative_speed(int8_ms: float | None, fp32_ms: float | None, steady: bool = True) -> str:
    """How a layer's integer kernel compares with fp32: ``3.2× slower``, ``2.0× faster``, ``as fast``; empty where not measured, and
    ``~`` where the times were not ``steady``."""
    if not int8_ms or not fp32_ms:
        return ""
    if not steady:
        return "~"
    if is_slower(int8_ms, fp32_ms):
        return f"{int8_ms / fp32_ms:.1f}× slower"
    return f"{fp32_ms / int8_ms:.1f}× faster" if is_slower(fp32_ms, int8_ms) else "as fast"
