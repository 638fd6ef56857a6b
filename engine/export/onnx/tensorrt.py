"""ONNX in TensorRT's dialect, with quantization that is explicit: QuantizeLinear and DequantizeLinear where its fuser looks for them.

TensorRT takes int8 with zero point 0 and nothing else, weights with a scale for each output, and biases in floating point ("Working with
Quantized Types" of its developer guide). Pairs stand before each convolution and product, on its weight too, and before additions: on
both inputs, but for what a convolution just gave. That one adds in its own accumulator before it rounds, as the kernels that were
measured do, and a pair between the two would part them (``build_non_residual_input_map`` of ModelOpt leaves it out as well).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.errors import EngineError
from engine.export.base import ExportContext, Runner, of_one_item
from engine.export.onnx import file
from engine.export.onnx.graph import Value
from engine.export.onnx.steps import Bound, Writer, Written, write_program
from engine.lowering.graph.program import Program, Step, grid_from
from engine.lowering.graph.runtime import Function
from engine.numerics.qparams import QParams
from engine.planning.plan import Plan
from engine.recipe.recipe import Recipe

TRIAL = file.TRIAL
PRESET = "tensorrt"
_BOUND: Bound = "numbers"


def refuses(model: Any, recipe: Recipe, plan: Plan | None) -> str | None:
    """A plan with activations that are not symmetric around zero."""
    if plan is None:
        asked = [rule.activations for rule in recipe.rules if rule.activations is not None]
        return None if recipe.preset == PRESET or any(part.symmetric for part in asked) else _sentence("the activations of this plan")
    for row in plan.layers:
        if row.actual.activations is not None and not row.actual.activations.symmetric:
            return _sentence(f"the activations of {row.path}")
    return None


def _sentence(what: str) -> str:
    return f"TensorRT takes int8 with zero point 0, and {what} are affine: take preset {PRESET}, which calibrates symmetric grids"


def write(context: ExportContext, path: Path) -> str:
    """The note has what differs, and the command that builds an engine of the file."""
    check(context.model.program)
    written = build(context)
    path.write_bytes(written.graph.model(written.inputs, written.outputs, written.results, context.about).SerializeToString())
    said = [of_one_item(context), _narrow(context.model.program), f"build: {command(path.name, written.inputs)}"]
    return "; ".join(filter(None, said))


def load(path: Path, context: ExportContext) -> Runner:
    """In ONNX Runtime, which computes the same graph; TensorRT itself needs its GPU."""
    return file.load(path, context)


def build(context: ExportContext) -> Written:
    """The graph of the program as it is: TensorRT's convolutions add before they round, as those that were measured do."""
    return write_program(context, context.model, _BOUND, _Writer)


def check(program: Program) -> None:
    """Raises EngineError for a grid whose zero lies not in its middle, naming the preset that has none."""
    for step in program.steps:
        for grid in _grids(step):
            if grid.zero_point != (grid.qmax + 1) // 2:
                raise EngineError(_sentence(f"values of {step.output}"))


def _grids(step: Step) -> Iterable[QParams]:
    for key in ("grid", "input", "output"):
        value = step.attrs.get(key)
        if isinstance(value, list | tuple) and len(value) == 3 and (grid := grid_from(value)) is not None:
            yield grid


def _narrow(program: Program) -> str:
    """What is to be said of grids with fewer levels than int8 has: their ends are drawn before rounding."""
    bits = {grid.bits for step in program.steps for grid in _grids(step)}
    if not bits or min(bits) == 8:
        return ""
    return f"activations have {min(bits)} bits, as measured here; a processor with VNNI measures 8"


def command(name: str, inputs: Iterable[Value], least: int = 1, usual: int = 8, most: int = 32) -> str:
    """``trtexec`` for an engine of any batch up to ``most``."""

    def shapes(count: int) -> str:
        return ",".join(f"{value.name}:{'x'.join(str(size if isinstance(size, int) else count * size.times) for size in value.shape)}"
                        for value in inputs)  # fmt: skip

    profile = " ".join(f"--{word}Shapes={shapes(count)}" for word, count in (("min", least), ("opt", usual), ("max", most)))
    return f"trtexec --onnx={name} --stronglyTyped {profile} --saveEngine={Path(name).stem}.engine"


class _Writer(Writer):
    """Integers are int8 around zero: the codes that were measured, less their zero point."""

    def _scale(self, grid: QParams) -> list[str]:
        return [self.graph.constant(np.array(grid.scale, np.float32)), self.graph.constant(np.array(0, np.int8))]

    def _op_layer(self, step: Step, function: Function) -> None:
        a, hint = step.attrs, step.attrs["layer"]
        if a["kind"] == "linear":
            self._product(step)
            return
        weight = self.program.layers[hint]
        inputs = [self.graph.read(self._float(step.inputs[0])), self._weight(weight.integers(), weight.channel_scale, hint, 0)]
        if a["bias"]:
            inputs.append(self.graph.constant(self.program.tensors[f"{hint}.bias"], f"{hint}_bias"))
        g = a["geometry"]
        made = self.graph.node(
            "Conv", inputs, hint, kernel_shape=list(weight.codes.shape[2:]), strides=list(g["stride"]),
            pads=[*g["padding"], *g["padding"]], dilations=list(g["dilation"]), group=g["groups"],
        )  # fmt: skip
        if a["accumulate"]:
            made = self.graph.node("Add", [made, self.graph.read(self._float(step.inputs[1]))], hint)
        self._finish(step, made, grid_from(a["output"]))

    def _product(self, step: Step) -> None:
        """A linear layer as a product with (in, out), whose outputs' scales lie on the second axis."""
        hint = step.attrs["layer"]
        weight = self.program.layers[hint]
        matrix = self._weight(weight.integers().t().contiguous(), weight.channel_scale, hint, 1)
        made = self.graph.node("MatMul", [self.graph.read(self._float(step.inputs[0])), matrix], hint)
        if step.attrs["bias"]:
            made = self.graph.node("Add", [made, self.graph.constant(self.program.tensors[f"{hint}.bias"], f"{hint}_bias")], hint)
        self._finish(step, made, grid_from(step.attrs["output"]))

    def _weight(self, integers: torch.Tensor, scale: torch.Tensor, hint: str, axis: int) -> str:
        zeros: Any = np.zeros(scale.shape, np.int8)
        stored = self.graph.constant(integers.to(torch.int8), f"{hint}_integers")
        return self.graph.node(
            "DequantizeLinear", [stored, self.graph.constant(scale), self.graph.constant(zeros)], f"{hint}_weight", axis=axis
        )

    def _op_module(self, step: Step, function: Function) -> None:
        """Layers with integer weights alone are written in floating point: TensorRT has no int8 kernel for half of a product."""
        self.values[step.output] = self._translated(step, function)
