"""A converted model as data: a list of steps over named values, and the tensors they use.

A program holds no code. It is what ``model.safetensors`` stores, what ``runtime`` executes, and the same whether it
came from calibration or from training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from engine.lowering.graph.call import Call
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
    and what the fp32 steps need. ``sizes`` is that of the images (H, W) where the steps hold what was computed from it, and None
    where they serve every size. ``others`` are further values that are returned; ``call`` tells how the program's inputs and results
    make up what the model takes and returns: None where it takes float32 images (N, C, H, W) alone and returns one tensor."""

    steps: tuple[Step, ...]
    result: str
    layers: Mapping[str, QTensor]
    tensors: Mapping[str, Tensor]
    sizes: tuple[int, ...] | None = None
    others: tuple[str, ...] = ()
    call: Call | None = None

    @property
    def results(self) -> tuple[str, ...]:
        """The values that are returned, in order."""
        return (self.result, *self.others)

    def header(self) -> dict[str, Any]:
        """The JSON part."""
        held = {} if self.sizes is None else {"sizes": list(self.sizes)}
        called = {} if self.call is None else {"call": self.call.to_json()}
        others = {"others": list(self.others)} if self.others else {}
        return {"result": self.result, "steps": [asdict(step) for step in self.steps], **held, **others, **called}


def steps_from(header: Mapping[str, Any]) -> tuple[Step, ...]:
    return tuple(Step(s["op"], s["output"], tuple(s["inputs"]), s["attrs"]) for s in header["steps"])


def call_from(header: Mapping[str, Any]) -> tuple[tuple[str, ...], Call | None]:
    """``others`` and ``call``. Raises ValueError for a call that is none; files of earlier versions have neither."""
    others = tuple(str(name) for name in header.get("others", ()))
    return others, Call.from_json(header["call"], 1 + len(others)) if header.get("call") is not None else None


def grid(q: QParams | None) -> list[float] | None:
    """JSON form of a grid; floats round-trip exactly."""
    return None if q is None else [q.scale, q.zero_point, q.qmax]


def grid_from(value: Any) -> QParams | None:
    return None if value is None else QParams(float(value[0]), int(value[1]), int(value[2]))


def sizes_from(header: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The sizes of the images that a program holds. Files of earlier versions do not tell them."""
    return tuple(int(size) for size in header["sizes"]) if header.get("sizes") is not None else None
