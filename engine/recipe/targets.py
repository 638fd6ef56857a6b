"""What a quantized model is to come to: its size, its bits per weight, its latency, its drop. Torch-free."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from engine.errors import UsageError, nearest
from engine.plain_text import one_line

Kind = Literal["size", "bpw", "latency", "drop"]
_NUMBER = re.compile(r"((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z]*)", re.ASCII)
# Units that a kind has beside the plain number, with what they multiply it by.
_UNITS: dict[str, dict[str, float]] = {
    "size": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}, "bpw": {}, "latency": {"ms": 1.0, "us": 1e-3, "s": 1e3}, "drop": {},
}  # fmt: skip
_ALLOWED = {
    "size": "a part of fp32's file between 0 and 1, such as size:0.2, or bytes, such as size:1.5MB",
    "bpw": "bits per weight from 1 to 32, such as bpw:4.5",
    "latency": "a part of fp32's time between 0 and 1, such as latency:0.5, or milliseconds, such as latency:3ms",
    "drop": "0 to 1 of the metric, such as drop:0.005",
}
_RANGES = {"size": (0.0, 1.0), "bpw": (1.0, 32.0), "latency": (0.0, 1.0), "drop": (0.0, 1.0)}


@dataclass(frozen=True)
class Target:
    """An upper bound. ``unit`` is empty for parts of what fp32 has and for plain numbers, ``B`` for bytes, ``ms`` for milliseconds.

    ``size`` is that of ``model.safetensors`` against the fp32 model as a file; ``bpw`` the bits of all weights of layers that can be
    quantized as they are stored, scales and zero points among them, for each weight; ``latency`` the median for the task's first
    workload; ``drop`` what the metric loses on validation."""

    kind: Kind
    value: float
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.value:.12g}{self.unit}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``KIND:VALUE``. Raises UsageError in one line."""
        kind, colon, number = (part.strip() for part in str(text).partition(":"))
        said = one_line(str(text), 60)
        if not colon:
            raise UsageError(f"target is {said!r}: write KIND:VALUE, such as drop:0.005, size:0.2, latency:0.5 or bpw:4.5")
        if kind not in _UNITS:
            raise UsageError(f"target is {said!r}: no such target, {nearest(kind, tuple(_UNITS))}")
        found = _NUMBER.fullmatch(number)
        units = {unit.lower(): (unit, factor) for unit, factor in _UNITS[kind].items()}
        if not found or (found[2] and found[2].lower() not in units):
            raise UsageError(f"target is {said!r}: {kind} must be {_ALLOWED[kind]}")
        value, unit = float(found[1]), ""
        if found[2]:
            value, unit = value * units[found[2].lower()][1], "B" if kind == "size" else "ms"
        low, high = (0.0, math.inf) if unit else _RANGES[kind]
        if not math.isfinite(value) or not low <= value <= high or (value == 0 and kind != "drop"):
            raise UsageError(f"target is {said!r}: {kind} must be {_ALLOWED[kind]}")
        return cls(cast(Kind, kind), value, unit)


def parsed(texts: Sequence[str]) -> tuple[Target, ...]:
    """Several targets, of each kind one. Raises UsageError in one line."""
    found = tuple(Target.parse(text) for text in texts)
    kinds = [target.kind for target in found]
    twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
    if twice:
        raise UsageError(f"two targets are of {twice}: give one of them")
    return found
