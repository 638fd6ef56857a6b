"""A program as an ONNX graph: integers between QuantizeLinear and DequantizeLinear, floating point through ``aten``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import EngineError, one_line
from engine.export.base import ExportContext
from engine.export.onnx import weights as onnx_weights
from engine.export.onnx.aten import BATCHES, translate
from engine.export.onnx.aten_types import cast
from engine.export.onnx.graph import Batch, Dim, Graph, Sizes, Value, dims
from engine.lowering.graph import calls
from engine.lowering.graph.binding import whole_mean
from engine.lowering.graph.program import Step, grid_from
from engine.lowering.graph.runtime import Function, QuantizedModel
from engine.lowering.graph.sequences import Length, open_lengths
from engine.numerics.qparams import QParams

# Where a grid has fewer levels than a byte, its bound is drawn on integers, or on numbers before they are rounded.
Bound = Literal["integers", "numbers"]
_SLACK = 1 + 1e-6
# ONNX Runtime's integer mean stops where a step of the sum is 256 steps of the result: means of what a normalization has centred.
_WIDEST = 128.0
# Operators by what a layer computes before it rounds.
_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}), "hardswish": ("HardSwish", {}), "sigmoid": ("Sigmoid", {}), "tanh": ("Tanh", {}), "mish": ("Mish", {}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}), "gelu": ("Gelu", {}), "gelu_tanh": ("Gelu", {"approximate": "tanh"}),
}  # fmt: skip
_KINDS = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)
# Inputs of narrow types, in what the graph computes with them.
_WIDER = {torch.uint8: torch.int32, torch.int8: torch.int32, torch.int16: torch.int32, torch.float16: torch.float32}


@dataclass(frozen=True)
class Written:
    """``results`` name in ``graph`` what each of ``outputs`` is."""

    graph: Graph
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    results: tuple[str, ...]


def write_program(context: ExportContext, model: QuantizedModel, bound: Bound, writer: type[Writer] | None = None) -> Written:
    """The graph of ``model``'s program, with inputs and outputs as the model that was traced names them; its one input of images is
    ``images`` and its result ``logits``. ``context`` holds at least 3 items. Raises EngineError naming the layer that has no ONNX form.
    ``writer`` is the dialect of the nodes."""
    some = _lengths(context, model)
    try:
        return _written(context, model, bound, writer or Writer, some)
    except EngineError:
        if not some:
            raise
    # What a length becomes need not be a multiple of it: such a file holds the lengths of the data.
    return _written(context, model, bound, writer or Writer, ())


def of_lengths(context: ExportContext, inputs: Sequence[Any]) -> str:
    """What is to be said of a file whose ``inputs`` hold lengths that the model has not; empty where there are none."""
    held = [length.size for length in _lengths(context, context.model) if isinstance(_second(inputs[length.places[0]]), int)]
    return f"for sequences of {' and '.join(map(str, held))} alone: a length in it is no multiple of theirs" if held else ""


def _lengths(context: ExportContext, model: QuantizedModel) -> Sequence[Length]:
    call = model.program.call
    return open_lengths(call, context.tensors) if call is not None else ()


def _second(info: Any) -> int | str:
    """The second dimension of an ONNX input."""
    size = info.type.tensor_type.shape.dim[1]
    return int(size.dim_value) if size.HasField("dim_value") else str(size.dim_param)


def _written(context: ExportContext, model: QuantizedModel, bound: Bound, writer: type[Writer], some: Sequence[Length]) -> Written:
    program = model.program
    call = program.call
    examples = [_example(context, count, some, which) for which, count in enumerate(BATCHES)]
    sizes = (BATCHES, *(_both(length.size, i) for i, length in enumerate(some)))
    small, large = (model.values(*tensors) for tensors in examples)
    shapes = [dims(a.shape, b.shape, *sizes) for a, b in zip(*examples, strict=True)]
    names: tuple[str, ...] = ("images",)
    returned: tuple[str, ...] = ("logits",)
    if call is not None:
        names, returned = tuple(i.name for i in call.inputs), call.output_names(len(program.results))
        returned = tuple(f"{name}_output" if name in names else name for name in returned)
    # What the runtime holds as bytes is a rounded value.
    if wrong := [name for name, x in zip(names, context.tensors, strict=True) if x.dtype not in (*_KINDS, *_WIDER)]:
        raise EngineError(f"the input {wrong[0]} has a type that has no ONNX form here: give it as float32, int64, int32, uint8 or bool")
    inputs = tuple(Value(name, shape, None, x.dtype) for name, shape, x in zip(names, shapes, context.tensors, strict=True))
    counted = next((i for i, shape in enumerate(shapes) if shape and isinstance(shape[0], Batch)), 0)
    lengths = [names[length.places[0]] for length in some]
    graph = Graph(context.tensors[counted][0].numel(), names[counted], (*names, *returned), sizes, lengths)
    return writer(model, small, large, bound, graph).run(inputs, returned)


def _both(size: int, which: int) -> tuple[int, int]:
    """A length in the small and in the large example: other parts of each other for each of several lengths."""
    return size - 1 - which, size


def _example(context: ExportContext, count: int, some: Sequence[Length], which: int) -> tuple[Tensor, ...]:
    """The inputs for ``count`` items, their sequences as long as the ``which``-th example has them."""
    tensors = list(context.items(0, count))
    for i, length in enumerate(some):
        for place in length.places:
            tensors[place] = tensors[place][:, : _both(length.size, i)[which]].contiguous()
    return tuple(tensors)


class Writer:
    """Nodes for each step, in the form that ONNX Runtime and OpenVINO find their integer kernels in."""

    def __init__(self, model: QuantizedModel, small: Mapping[str, Any], large: Mapping[str, Any], bound: Bound, graph: Graph) -> None:
        self.model, self.program, self.small, self.large, self.bound = model, model.program, small, large, bound
        self.graph = graph
        self.values: dict[str, Any] = {}
        self.grids: dict[str, QParams] = {}
        self._floats: dict[str, Value] = {}

    def run(self, inputs: tuple[Value, ...], returned: tuple[str, ...]) -> Written:
        taken = (cast(self.graph, x, _WIDER[x.kind], f"{x.name}_wide") if x.kind in _WIDER else x for x in inputs)
        self.values |= zip(self.model.input_names, taken, strict=False)
        for step, function in self.model.functions():
            try:
                self._step(step, function)
            except EngineError:
                raise
            except Exception as error:
                raise EngineError(f"{_path(step)} cannot be written as ONNX ({type(error).__name__}: {one_line(error, 120)})") from error
        results = self.program.results
        outputs = tuple(
            Value(name, self._shape(result), None, self.small[result].dtype) for name, result in zip(returned, results, strict=True)
        )
        return Written(self.graph, inputs, outputs, tuple(self.graph.read(self.values[result]) for result in results))

    def _step(self, step: Step, function: Function) -> None:
        if not _holds_tensors(self.small[step.output]):
            self.values[step.output] = None
            return
        write: Callable[[Step, Function], None] = getattr(self, f"_op_{step.op}")
        write(step, function)

    def _shape(self, name: str) -> tuple[Dim, ...]:
        return dims(self.small[name].shape, self.large[name].shape, *self.graph.sizes)

    def _float(self, name: str) -> Any:
        """A value to compute with: integers are dequantized, once."""
        if name not in self.grids:
            return self.values[name]
        if name not in self._floats:
            grid, value = self.grids[name], self.values[name]
            output = self.graph.node("DequantizeLinear", [value.name, *self._scale(grid)], f"{name}_f")
            self._floats[name] = Value(output, value.shape)
        return self._floats[name]

    def _scale(self, grid: QParams) -> list[str]:
        return [self.graph.constant(np.array(grid.scale, np.float32)), self.graph.constant(np.array(grid.zero_point, np.uint8))]

    def _quantized(self, step: Step, number: str, grid: QParams, moved: bool = False) -> None:
        """The step's output: ``number`` rounded to ``grid``; it lies within the grid where values were only ``moved``."""
        graph, top = self.graph, 255 if moved else grid.qmax
        if top < 255 and self.bound == "numbers":
            ends = [graph.constant(np.array((end - grid.zero_point) * grid.scale, np.float32)) for end in (0, top)]
            number = graph.node("Clip", [number, *ends], step.output)
        name = graph.node("QuantizeLinear", [number, *self._scale(grid)], step.output)
        if top < 255 and self.bound == "integers":
            name = graph.node("Clip", [name, *(graph.constant(np.array(end, np.uint8)) for end in (0, top))], step.output)
        self.values[step.output] = Value(name, self._shape(step.output))
        self.grids[step.output] = grid

    def _translated(self, step: Step, run: Function, known: Callable[[Tensor], str | None] = lambda _: None) -> Any:
        """``run`` on the step's inputs as numbers."""
        pairs = [(_number(self.small[name]), _number(self.large[name])) for name in step.inputs]
        values = [self._float(name) for name in step.inputs]
        return translate(self.graph, run, pairs, values, step.output, _path(step), known)

    def _op_quantize(self, step: Step, _: Function) -> None:
        self._quantized(step, self.graph.read(self.values[step.inputs[0]]), _grid(step, "grid"))

    def _op_dequantize(self, step: Step, _: Function) -> None:
        self.values[step.output] = self._float(step.inputs[0])

    def _op_identity(self, step: Step, _: Function) -> None:
        self.values[step.output] = self.values[step.inputs[0]]
        self.grids[step.output] = self.grids[step.inputs[0]]

    def _op_constant(self, step: Step, _: Function) -> None:
        tensor = self.program.tensors[step.output]
        self.values[step.output] = Value(step.output, tuple(tensor.shape), tensor, tensor.dtype)

    def _op_call(self, step: Step, function: Function) -> None:
        if step.attrs["function"] == "F.pad" and calls.padding(step.attrs)[1] == "circular":
            function = partial(_around, pads=calls.padding(step.attrs)[0])
        self.values[step.output] = self._translated(step, function)

    def _op_module(self, step: Step, function: Function) -> None:
        if not step.attrs["weight_only"]:
            self.values[step.output] = self._translated(step, function)
            return
        weight = self.program.layers[step.output]
        if step.attrs["kind"] == "Linear":
            bias = self.program.tensors.get(f"{step.output}.bias")
            made = self.graph.node(
                "MatMul", [self.graph.read(self._float(step.inputs[0])), onnx_weights.blocked(self.graph, weight, step.output)], step.output
            )
            made = made if bias is None else self.graph.node("Add", [made, self.graph.constant(bias)], step.output)
            self.values[step.output] = Value(made, self._shape(step.output))
            return
        exact = weight.dequantize()
        name = onnx_weights.weights(self.graph, weight, weight.channel_scale, step.output)
        known = {True: name}
        self.values[step.output] = self._translated(
            step, function, lambda tensor: known.get(tensor.shape == exact.shape and torch.equal(tensor, exact))
        )

    def _op_carry(self, step: Step, function: Function) -> None:
        self._quantized(step, self.graph.read(self._translated(step, function)), self.grids[step.inputs[0]], moved=True)

    def _op_pad(self, step: Step, _: Function) -> None:
        pads, mode = calls.padding(step.attrs)
        run = partial(_around, pads=pads) if mode == "circular" else partial(F.pad, pad=pads, mode=mode)
        self._quantized(step, self.graph.read(self._translated(step, run)), _grid(step, "grid"), moved=True)

    def _op_max_pool(self, step: Step, _: Function) -> None:
        a = step.attrs
        pool = partial(
            F.max_pool2d, kernel_size=list(a["kernel"]), stride=list(a["stride"]), padding=list(a["padding"]),
            dilation=list(a["dilation"]), ceil_mode=a["ceil_mode"],
        )  # fmt: skip
        self._quantized(step, self.graph.read(self._translated(step, pool)), self.grids[step.inputs[0]], moved=True)

    def _op_average(self, step: Step, _: Function) -> None:
        average = self.model.call(step)
        drops, places = whole_mean(step), self.small[step.inputs[0]].shape[2:].numel()
        if drops is not None and _grid(step, "input").scale >= _WIDEST * places * _grid(step, "output").scale:
            average = partial(_mean_by_sum, keepdim=not drops, places=places)
        self._quantized(step, self.graph.read(self._translated(step, average)), _grid(step, "output"))

    def _op_sum(self, step: Step, _: Function) -> None:
        out = _grid(step, "output")
        made = self.graph.node("Add", [self.graph.read(self._float(name)) for name in step.inputs], step.output)
        self._quantized(step, self._activated(made, "relu" if step.attrs["relu"] else "none", out, step.output), out)

    def _op_gate(self, step: Step, _: Function) -> None:
        made = self.graph.node("Mul", [self.graph.read(self._float(name)) for name in step.inputs], step.output)
        self._quantized(step, made, _grid(step, "output"))

    def _op_affine(self, step: Step, _: Function) -> None:
        """As a batch normalization, which runtimes fuse with what follows."""
        out = _grid(step, "output")
        factor, shift = (self.program.tensors[f"{step.attrs['norm']}.{part}"] for part in ("factor", "shift"))
        made = self.graph.read(self._float(step.inputs[0]))
        made = self.graph.node("Mul", [made, self.graph.constant(factor.reshape(-1, 1, 1))], step.output)
        made = self.graph.node("Add", [made, self.graph.constant(shift.reshape(-1, 1, 1))], step.output)
        self._quantized(step, self._activated(made, "relu" if step.attrs["relu"] else "none", out, step.output), out)

    def _op_layer(self, step: Step, _: Function) -> None:
        a, hint = step.attrs, step.attrs["layer"]
        source, out = _grid(step, "input"), grid_from(a["output"])
        weight = self.program.layers[hint]
        offset = self.program.tensors[f"{hint}.bias"] if a["bias"] else None
        scale = onnx_weights.usable_scale(weight, offset, source.scale)
        inputs = [onnx_weights.weights(self.graph, weight, scale, hint)]
        if offset is not None:
            inside = onnx_weights.bias(self.graph, offset, scale, source.scale, out.scale if out else None, hint)
            inputs, offset = ([*inputs, inside], None) if inside is not None else (inputs, offset)
        if a["kind"] == "linear":
            self._linear(step, inputs, source, out, offset)
            return
        g = a["geometry"]
        made = self.graph.node(
            "Conv", [self.graph.read(self._float(step.inputs[0])), *inputs], hint, kernel_shape=list(weight.codes.shape[2:]),
            strides=list(g["stride"]), pads=[*g["padding"], *g["padding"]], dilations=list(g["dilation"]), group=g["groups"],
        )  # fmt: skip
        if offset is not None:
            made = self.graph.node("Add", [made, self.graph.constant(offset.reshape(-1, *[1] * (weight.codes.dim() - 2)))], hint)
        if a["accumulate"]:
            made = self.graph.node("Add", [made, self.graph.read(self._float(step.inputs[1]))], hint)
        self._finish(step, made, out)

    def _linear(self, step: Step, inputs: list[str], source: QParams, out: QParams | None, offset: Tensor | None) -> None:
        """As a product of two matrices, to which ``offset`` is added; further dimensions are flattened as integers, so that the
        product stays next to them."""
        x, hint = self.values[step.inputs[0]], step.attrs["layer"]
        name = x.name
        if len(x.shape) != 2:
            rows = _rows(self.small[step.inputs[0]], self.large[step.inputs[0]], self.graph.sizes)
            name = self.graph.reshape(name, (rows, x.shape[-1]), hint)
        made = self.graph.node("DequantizeLinear", [name, *self._scale(source)], hint)
        made = self.graph.node("Gemm", [made, *inputs], hint, transB=1)
        made = made if offset is None else self.graph.node("Add", [made, self.graph.constant(offset)], hint)
        self._finish(step, made, out)
        if len(x.shape) != 2:
            value = self.values[step.output]
            shape = self._shape(step.output)
            self.values[step.output] = Value(self.graph.reshape(value.name, shape, hint), shape)

    def _finish(self, step: Step, made: str, out: QParams | None) -> None:
        made = self._activated(made, step.attrs["activation"], out, step.attrs["layer"])
        if out is None:
            self.values[step.output] = Value(made, self._shape(step.output))
        else:
            self._quantized(step, made, out)

    def _activated(self, made: str, kind: str, out: QParams | None, hint: str) -> str:
        """The activation, where the grid's own ends do not do its work."""
        byte = out is not None and out.zero_point == 0 and (out.qmax == 255 or self.bound == "integers")
        if kind == "none" or (kind == "relu" and byte):
            return made
        if kind == "relu6":
            top = out is not None and (out.qmax - out.zero_point) * out.scale <= 6 * _SLACK
            if byte and top:
                return made
            return self.graph.node("Clip", [made, self.graph.constant(0.0), self.graph.constant(6.0)], hint)
        if kind == "silu":
            return self.graph.node("Mul", [made, self.graph.node("Sigmoid", [made], hint)], hint)
        name, about = _ACTIVATIONS[kind]
        return self.graph.node(name, [made], hint, **about)


def _around(x: Tensor, pads: Sequence[int]) -> Tensor:
    """``F.pad`` that goes on at the other end: torch writes it into memory that it has not filled, which has no ONNX form."""
    for i in range(len(pads) // 2):
        (before, after), dim = pads[2 * i : 2 * i + 2], x.dim() - 1 - i
        size = x.shape[dim]
        parts = (x.narrow(dim, size - before, before) if before > 0 else None, x, x.narrow(dim, 0, after) if after > 0 else None)
        x = torch.cat([part for part in parts if part is not None], dim)
        if min(before, after) < 0:
            start = max(0, -before)
            x = x.narrow(dim, start, x.shape[dim] - start - max(0, -after))
    return x


def _mean_by_sum(x: Tensor, keepdim: bool, places: int) -> Tensor:
    """The mean over height and width as what no runtime makes one integer operation of."""
    return x.sum((2, 3), keepdim=keepdim) * (1.0 / places)


def _path(step: Step) -> str:
    return str(step.attrs.get("path") or step.output.partition(":")[0])


def _grid(step: Step, key: str) -> QParams:
    found = grid_from(step.attrs[key])
    assert found is not None
    return found


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(_holds_tensors(v) for v in value))


def _number(value: Any) -> Any:
    """Integers as numbers; in row-major order, for torch takes other ways in another order that only move memory."""
    if not isinstance(value, Tensor):
        return value
    return (value.float() if value.dtype == torch.uint8 else value.clone()).contiguous()


def _rows(small: Tensor, large: Tensor, sizes: Sequence[Sizes]) -> Dim:
    width = small.shape[-1]
    return dims((small.numel() // width,), (large.numel() // width,), *sizes)[0]
