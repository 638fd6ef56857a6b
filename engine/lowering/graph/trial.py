"""A plan tried before there are ranges or rounded weights: the steps by which two plans differ, run and timed.

A layer that is slower on integers need not make the model faster in fp32: values have to be turned to float and back
around it, and its neighbours may lose what runs inside their kernels. The steps that come and go tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from engine.kernels.base import Kernel
from engine.kernels.stopwatch import Race, Run, Stopwatch
from engine.kernels.timing import laid_out
from engine.lowering.graph.convert import convert
from engine.lowering.graph.fixed import Fixing, NotFixed
from engine.lowering.graph.kinds import kind, module_of, tensor_inputs
from engine.lowering.graph.layout import Layout, arrange
from engine.lowering.graph.program import Program, Step
from engine.lowering.graph.runtime import QuantizedModel
from engine.numerics.formats import integer
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor
from engine.recipe.spec import LayerSpec

Sizes = Mapping[str, tuple[int, ...]]
# Steps that read no input are given it.
_NOTHING = torch.empty(0)


@dataclass(frozen=True)
class Bench:
    """What trials share: ``sizes`` are those of each node's value for one image, ``top`` the largest activation."""

    gm: fx.GraphModule
    kernels: Sequence[Kernel]
    sizes: Sizes
    watch: Stopwatch
    top: int = 255

    def race(self, before: Mapping[str, LayerSpec], after: Mapping[str, LayerSpec], batch: int) -> Race | None:
        """Milliseconds of the steps by which the two plans (specs by module path) differ: those of ``before``, of ``after``.

        None where such a step reads more than tensors, and where there is no time left. Raises Cancelled.
        """
        one, other = (_program(self.gm, specs, self.top) for specs in (before, after))
        common = {_told(step) for step in one.steps} & {_told(step) for step in other.steps}
        parts = [tuple(step for step in program.steps if _told(step) not in common) for program in (one, other)]
        given = [self._inputs(part) for part in parts]
        if any(names is None for names in given):
            return None

        def runs() -> tuple[Run, Run]:
            whole: dict[str, nn.Module] = {str(n.target): m for n in self.gm.graph.nodes if (m := module_of(n)) is not None}
            first, second = (
                self._run(program, part, names or (), whole, batch) for program, part, names in zip((one, other), parts, given, strict=True)
            )
            return first, second

        told = [[_told(step) for step in part] for part in parts]
        sizes = {name: self.sizes[_node(name)] for names in given for name in names or ()}
        with torch.inference_mode():
            return self.watch.race(f"{[kernel.name for kernel in self.kernels]} {batch} {told} {sizes}", runs)

    def _inputs(self, part: Sequence[Step]) -> tuple[str, ...] | None:
        """The values that these steps read and none of them computes."""
        made = {step.output for step in part}
        names = dict.fromkeys(name for step in part for name in step.inputs if name not in made)
        return tuple(names) if all(_node(name) in self.sizes for name in names) else None

    def _run(self, program: Program, part: tuple[Step, ...], names: Sequence[str], whole: Mapping[str, nn.Module], batch: int) -> Run:
        if not part:
            return lambda: None
        layers = {
            name: replace(weight, codes=weight.codes.contiguous()) for name, weight in program.layers.items() if name in _weighted(part)
        }
        model = QuantizedModel(Program(part, part[-1].output, layers, program.tensors), self.kernels, whole)
        functions = model.functions()
        given = {name: self._value(name, batch) for name in names}
        return _tied(functions, given) or _stepwise(functions, given)

    def _value(self, name: str, batch: int) -> Tensor:
        nodes = {node.name: node for node in self.gm.graph.nodes}
        free = nodes[_node(name)].meta["shape"]
        shape = [size * batch if of_batch is None else size for size, of_batch in zip(self.sizes[_node(name)], free, strict=True)]
        dtype, number = (torch.uint8, 5.0) if name.endswith(":q") else (torch.float32, 0.5)
        return laid_out(torch.full(shape, number, dtype=dtype))


Functions = Sequence[tuple[Step, Callable[..., Any]]]


def _tied(functions: Functions, given: Mapping[str, Tensor]) -> Run | None:
    """The steps tied to memory as a model's program is, None where they cannot be."""
    steps = [*(Step("constant", name) for name in given), *(step for step, _ in functions)]
    runs: list[Callable[..., Any]] = [*(partial(_itself, value) for value in given.values()), *(function for _, function in functions)]
    try:
        fixed = Fixing(steps, runs, None, steps[-1].output).build(_NOTHING)
    except NotFixed:
        return None

    def run() -> None:
        for step in fixed.run:
            step(_NOTHING)

    return run


def _stepwise(functions: Functions, given: Mapping[str, Tensor]) -> Run:
    def run() -> None:
        values = dict(given)
        for step, function in functions:
            values[step.output] = function(*[values[name] for name in step.inputs])

    return run


def _itself(value: Tensor) -> Tensor:
    return value


def linked(gm: fx.GraphModule, layout: Layout, paths: Sequence[str]) -> list[tuple[str, ...]]:
    """``paths`` in groups, in the order of the graph: layers of a group follow one another with no other unit between them."""
    inside, nodes = layout.inside(), {node.name: node for node in gm.graph.nodes}
    chosen = [unit for unit in layout.units if unit.path in paths]
    group = {path: {path} for path in paths}
    for unit in chosen:
        left = [nodes[name] for name in (unit.input, unit.other) if name]
        seen: set[fx.Node] = set()
        while left:
            node = left.pop()
            if node in seen:
                continue
            seen.add(node)
            before = inside.get(node.name)
            if before is None:
                left += tensor_inputs(node)
            elif before.path in group and before.path != unit.path:
                merged = group[before.path] | group[unit.path]
                group.update(dict.fromkeys(merged, merged))
    found = dict.fromkeys(tuple(path for path in paths if path in group[start]) for start in paths)
    return list(found)


def _told(step: Step) -> str:
    """A step as text, the same for equal work: a value that was turned to float is as good as one that was computed so."""
    return repr((step.op, step.output, step.inputs, step.attrs)).replace(":f'", "'")


def _weighted(part: Sequence[Step]) -> set[str]:
    """The names of the weights that these steps take."""
    return {step.attrs["layer"] if step.op == "layer" else step.output for step in part}


def _node(name: str) -> str:
    return name.partition(":")[0]


def _program(gm: fx.GraphModule, specs: Mapping[str, LayerSpec], top: int) -> Program:
    """The program of a plan, with grids and weights that stand for those to come."""
    layout = arrange(gm, specs)
    weights = {node.name: _weight(node) for node in gm.graph.nodes if kind(node) in ("conv", "linear") and _rounded(specs, node)}
    return convert(gm, layout, {c.name: QParams(0.02, 3, top) for c in layout.classes}, weights)


def _rounded(specs: Mapping[str, LayerSpec], node: fx.Node) -> bool:
    spec = specs.get(str(node.target))
    return spec is not None and spec.weights is not None


def _weight(node: fx.Node) -> QTensor:
    module = module_of(node)
    assert module is not None
    weight: Tensor = module.weight  # type: ignore[assignment]
    # One number seen from everywhere: what is never run takes no memory.
    return QTensor(torch.full((1,), 3, dtype=torch.int8).expand(weight.shape), torch.full((len(weight), 1), 0.001), None, integer(8))
