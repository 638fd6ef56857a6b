"""From a calibrated graph to a program of integer steps.

Integers run from the first quantized layer to the last; a value is turned back to float only where something reads it
as float.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from engine.kernels.base import geometry
from engine.lowering.graph.call import of_program
from engine.lowering.graph.calls import encode, function_call, names_in, pooling
from engine.lowering.graph.fuse import LAYERS, factor_and_shift, folded_parameters
from engine.lowering.graph.kinds import SIZES, attribute, kind, module_of, tensor_inputs
from engine.lowering.graph.layout import AVERAGES, CARRIES, Affine, Gate, Layout, Sum, Unit
from engine.lowering.graph.module_recipes import module_recipe
from engine.lowering.graph.program import Program, Step, grid
from engine.lowering.graph.sizes import held_sizes
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor


def unit_parameters(gm: fx.GraphModule, unit: Unit) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a unit as its kernel takes them: with its batch normalization folded in."""
    nodes = {node.name: node for node in gm.graph.nodes}
    layer = module_of(nodes[unit.layer])
    assert isinstance(layer, LAYERS)
    if unit.bn is None:
        return layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    norm = module_of(nodes[unit.bn])
    assert norm is not None
    weight, shift = folded_parameters(layer, norm)
    return weight.float(), shift.float()


def convert(
    gm: fx.GraphModule,
    layout: Layout,
    grids: Mapping[str, QParams],
    weights: Mapping[str, QTensor],
) -> Program:
    """``grids`` maps each value class to its grid, ``weights`` the node of each layer with integer weights to them;
    those outside the layout's units keep float activations. ``gm`` must be on the CPU and in eval mode."""
    return _Converter(gm, layout, grids, weights).run()


def _results(given: Any) -> Iterator[fx.Node]:
    for result in given if isinstance(given, tuple | list) else (given,):
        assert isinstance(result, fx.Node)
        yield result


class _Converter:
    def __init__(
        self,
        gm: fx.GraphModule,
        layout: Layout,
        grids: Mapping[str, QParams],
        weights: Mapping[str, QTensor],
    ) -> None:
        self.gm, self.grids, self.weights = gm, grids, weights
        self.nodes = {node.name: node for node in gm.graph.nodes}
        self.units = {unit.output: unit for unit in layout.units}
        self.sums = {s.output: s for s in layout.sums}
        self.gates = {gate.output: gate for gate in layout.gates}
        self.affines = {affine.output: affine for affine in layout.affines}
        self.hidden = set(layout.inside()) | {s.add for s in layout.sums} | {affine.norm for affine in layout.affines}
        self.class_of = layout.class_of()
        self.steps: list[Step] = []
        self.tensors: dict[str, Tensor] = {}
        self.layers: dict[str, QTensor] = {}
        self.integer: set[str] = set()
        self.float: set[str] = set()

    def run(self) -> Program:
        for node in self.gm.graph.nodes:
            if node.op == "output":
                (given,) = node.args
                first, *others = (self._as_float(result) for result in _results(given))
                held = held_sizes(self.gm.graph)
                call = of_program(self.gm.graph, held is not None)
                sizes = held if call is None else None
                return Program(tuple(self.steps), first, self.layers, self.tensors, sizes, tuple(others), call)
            if node.name in self.units:
                self._unit(node, self.units[node.name])
            elif node.name in self.sums:
                self._sum(node, self.sums[node.name])
            elif node.name in self.gates:
                self._gate(node, self.gates[node.name])
            elif node.name in self.affines:
                self._affine(node, self.affines[node.name])
            elif node.name not in self.hidden:
                self._other(node)
        raise AssertionError("a graph without output")

    def _grid(self, name: str) -> QParams | None:
        return self.grids[self.class_of[name].name] if name in self.class_of else None

    def _emit(self, op: str, produced: str, reads: list[str], /, **attrs: object) -> None:
        self.steps.append(Step(op, produced, tuple(reads), attrs))

    def _unit(self, node: fx.Node, unit: Unit) -> None:
        module = module_of(self.nodes[unit.layer])
        _, bias = unit_parameters(self.gm, unit)
        if bias is not None:
            self.tensors[f"{unit.layer}.bias"] = bias.float().contiguous()
        self.layers[unit.layer] = self.weights[unit.layer]
        inputs = [self._as_integer(unit.input)] + ([self._as_integer(unit.other)] if unit.other else [])
        output = self._grid(node.name)
        self._emit(
            "layer", self._result(node, output is not None), inputs, layer=unit.layer, path=unit.path, kind=unit.kind,
            bias=bias is not None, activation=unit.activation_kind, geometry=geometry(module), input=grid(self._grid(unit.input)),
            output=grid(output), accumulate=grid(self._grid(unit.other)) if unit.other else None,
        )  # fmt: skip

    def _sum(self, node: fx.Node, addition: Sum) -> None:
        inputs = [self._as_integer(addition.left), self._as_integer(addition.right)]
        self._emit(
            "sum", self._result(node, True), inputs, left=grid(self._grid(addition.left)), right=grid(self._grid(addition.right)),
            output=grid(self._grid(node.name)), relu=addition.relu is not None,
        )  # fmt: skip

    def _gate(self, node: fx.Node, gate: Gate) -> None:
        inputs = [self._as_integer(gate.values), self._as_integer(gate.gates)]
        self._emit(
            "gate", self._result(node, True), inputs, left=grid(self._grid(gate.values)), right=grid(self._grid(gate.gates)),
            output=grid(self._grid(node.name)),
        )  # fmt: skip

    def _affine(self, node: fx.Node, affine: Affine) -> None:
        factor, shift = factor_and_shift(module_of(self.nodes[affine.norm]))
        self.tensors |= {f"{affine.norm}.factor": factor.float(), f"{affine.norm}.shift": shift.float()}
        self._emit(
            "affine", self._result(node, True), [self._as_integer(affine.input)], norm=affine.norm, relu=affine.relu is not None,
            path=str(self.nodes[affine.norm].target), input=grid(self._grid(affine.input)), output=grid(self._grid(node.name)),
        )  # fmt: skip

    def _other(self, node: fx.Node) -> None:
        what, reads = kind(node), tensor_inputs(node)
        carried = self._grid(node.name)
        if what == "placeholder":
            self.float.add(node.name)
        elif carried is not None and what in AVERAGES and self._grid(reads[0].name) is not None:
            call = function_call(node, self._integer_name)
            given = self._as_integer(reads[0].name)
            self._emit("average", self._result(node, True), [given], input=grid(self._grid(reads[0].name)), output=grid(carried), **call)
        elif carried is None or what not in CARRIES or any(self._grid(n.name) != carried for n in reads):
            self._float_step(node)
        elif what == "max_pool":
            self._emit("max_pool", self._result(node, True), [self._as_integer(reads[0].name)], **pooling(node))
        elif what == "identity":
            self._emit("identity", self._result(node, True), [self._as_integer(reads[0].name)])
        else:
            call = function_call(node, self._integer_name)
            op = "pad" if what == "pad" else "carry"
            self._emit(op, self._result(node, True), names_in(call["args"]) + names_in(call["kwargs"]), grid=grid(carried), **call)

    def _float_step(self, node: fx.Node) -> None:
        self.float.add(node.name)
        if node.op == "get_attr":
            self.tensors[node.name] = attribute(self.gm, node.target).detach().contiguous()
            self._emit("constant", node.name, [])
        elif node.op == "call_module":
            self._module(node)
        else:
            call = function_call(node, self._shaped if node.target in SIZES else self._as_float)
            self._emit("call", node.name, names_in(call["args"]) + names_in(call["kwargs"]), **call)

    def _module(self, node: fx.Node) -> None:
        module = module_of(node)
        assert module is not None
        args, kwargs = encode(node.args, self._as_float), encode(node.kwargs, self._as_float)
        stored = self.weights.get(node.name)
        if stored is not None:
            self.layers[node.name] = stored
        for name, tensor in module.state_dict().items():
            if not (stored is not None and name == "weight"):
                self.tensors[f"{node.name}.{name}"] = tensor.detach().contiguous()
        self._emit(
            "module", node.name, names_in(args) + names_in(kwargs), path=str(node.target), module=module_recipe(module),
            kind=type(module).__name__, weight_only=stored is not None, args=args, kwargs=kwargs,
        )  # fmt: skip

    def _integer_name(self, node: fx.Node) -> str:
        return self._as_integer(node.name) if self._grid(node.name) else self._as_float(node)

    def _shaped(self, node: fx.Node) -> str:
        """The value in whatever form there is: only its shape is asked for."""
        return f"{node.name}:q" if node.name in self.integer else node.name if node.name in self.float else self._as_float(node)

    def _result(self, node: fx.Node, integer: bool) -> str:
        (self.integer if integer else self.float).add(node.name)
        return f"{node.name}:q" if integer else node.name

    def _as_integer(self, name: str) -> str:
        if name not in self.integer:
            self._emit("quantize", f"{name}:q", [name], grid=grid(self._grid(name)))
            self.integer.add(name)
        return f"{name}:q"

    def _as_float(self, node: fx.Node) -> str:
        name = node.name
        needs = "dtype" in node.meta and node.meta["dtype"] == torch.float32 and self._grid(name) is not None
        if needs and name not in self.integer:
            self._as_integer(name)
        if needs and f"{name}:f" not in self.float:
            self._emit("dequantize", f"{name}:f", [f"{name}:q"], grid=grid(self._grid(name)))
            self.float.add(f"{name}:f")
        return f"{name}:f" if needs else name
