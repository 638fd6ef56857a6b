"""A converted model as data: a list of steps over named values, and the tensors they use.

A program holds no code. It is what ``model.safetensors`` stores, what ``runtime`` executes, and the same whether it
came from calibration or from training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor


@dataclass(frozen=True)
class Step:
    """``op`` names an operation of ``runtime``; ``inputs`` and ``output`` name values; ``attrs`` is plain JSON."""

    op: str
    output: str
    inputs: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """``result`` names the value that is returned; ``layers`` maps a layer's node to its weights; ``tensors`` holds biases
    and what the fp32 steps need."""

    steps: tuple[Step, ...]
    result: str
    layers: Mapping[str, QTensor]
    tensors: Mapping[str, Tensor]

    def header(self) -> dict[str, Any]:
        """The JSON part."""
        return {"result": self.result, "steps": [asdict(step) for step in self.steps]}


def steps_from(header: Mapping[str, Any]) -> tuple[Step, ...]:
    return tuple(Step(s["op"], s["output"], tuple(s["inputs"]), s["attrs"]) for s in header["steps"])


def grid(q: QParams | None) -> list[float] | None:
    """JSON form of a grid; floats round-trip exactly."""
    return None if q is None else [q.scale, q.zero_point, q.qmax]


def grid_from(value: Any) -> QParams | None:
    return None if value is None else QParams(float(value[0]), int(value[1]), int(value[2]))
