"""The images that a program takes, and what is said of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, one_line
from engine.lowering.graph.call import Call
from engine.lowering.graph.program import Program

_KEEPING = ("quantize", "dequantize", "identity", "max_pool")


def wrong_size(x: Tensor, sizes: tuple[int, ...]) -> str:
    """What is said of images of another size than the program's."""
    side, given = ("×".join(str(n) for n in pair) for pair in (sizes, x.shape[2:]))
    return f"the model was traced on images of {side} and computes with that size, not with {given or 'none'}: give images of {side}"


@dataclass(frozen=True)
class Taking:
    """float32 images (N, ``channels``, H, W); None where the program does not tell their channels."""

    channels: int | None = None

    def check(self, x: Any) -> None:
        """Raises EngineError for anything else; images of a wrong size show where they are computed with."""
        if not isinstance(x, Tensor) or x.dtype is not torch.float32 or x.dim() != 4 or self.channels not in (None, x.size(1)):
            raise EngineError(f"the model takes {self}, not {_named(x)}: {_step(x)}")

    def failed(self, x: Any, error: Exception) -> EngineError:
        """What ``error`` says of images that passed ``check``."""
        said = one_line(error, 120) or type(error).__name__
        return EngineError(
            f"the model cannot compute with {_named(x)} ({said}): give {self} as large as the run's, in the processor's memory"
        )

    def __str__(self) -> str:
        return f"float32 images (N, {self.channels or 'C'}, H, W)"


@dataclass(frozen=True)
class TakingCall:
    """The inputs of a program that tells how it is called."""

    call: Call

    def check(self, inputs: Any) -> None:
        """Raises EngineError for inputs of another type, rank or fixed size."""
        self.call.check(inputs)

    def failed(self, inputs: Any, error: Exception) -> EngineError:
        """What ``error`` says of inputs that passed ``check``."""
        said = one_line(error, 120) or type(error).__name__
        given = ", ".join(map(_named, inputs))
        return EngineError(
            f"the model cannot compute with {given} ({said}): give inputs as the run's, in the processor's memory: {self.call}"
        )


def taking(program: Program) -> Taking | TakingCall:
    """What the program's call tells of its inputs, or the first convolution that reads the images tells of them."""
    if program.call is not None:
        return TakingCall(program.call)
    made = {step.output for step in program.steps}
    values = {name for step in program.steps for name in step.inputs} - made
    for step in program.steps:
        if not values.intersection(step.inputs):
            continue
        if step.op in _KEEPING:
            values.add(step.output)
        elif step.op == "layer" and step.attrs["kind"] == "conv":
            return Taking(program.layers[step.attrs["layer"]].shape[1] * int(step.attrs["geometry"]["groups"]))
    return Taking()


def _named(x: Any) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a value of {type(x).__name__}"


def _step(x: Any) -> str:
    if not isinstance(x, Tensor):
        return "give a tensor"
    if x.dtype != torch.float32:
        return "convert it with .float()"
    return "add the batch with [None]" if x.dim() == 3 else "give another shape"
