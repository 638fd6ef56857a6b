"""Which values of a graph become integers, and which nodes run together as one integer layer.

A value needs integers when a quantized layer reads it, or an operation that only moves or selects values on the way to
such a layer. Values joined by such operations form a class that shares one scale and zero point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from engine.lowering.graph.fuse import find_pairs
from engine.lowering.graph.kinds import BATCH_NORMS, IN_KERNELS, kind, module_of, source, tensor_inputs
from engine.recipe.spec import ActivationSpec, LayerSpec

CARRIES = ("max_pool", "reshape", "identity", "slice", "pad", "cat", "shuffle")
AVERAGES = ("avg_pool", "adaptive_avg_pool", "mean")
# By what torch's kernels take, or finish in floating point, for other layers than 2-D convolutions.
_IN_OTHERS = tuple(name for name in IN_KERNELS if name != "relu6")


@dataclass(frozen=True)
class Unit:
    """One integer layer: node names of the convolution or linear, and of what runs inside its kernel.

    ``output`` is the last of them, whose value leaves the unit. ``other`` is the second operand of ``add``.
    """

    path: str
    kind: str
    layer: str
    input: str
    output: str
    bn: str | None = None
    add: str | None = None
    other: str | None = None
    activation: str | None = None
    activation_kind: str = "none"

    def nodes(self) -> tuple[str, ...]:
        return tuple(n for n in (self.layer, self.bn, self.add, self.activation) if n)


@dataclass(frozen=True)
class Sum:
    """An addition of two integer values, with the relu that follows it, outside any unit."""

    add: str
    left: str
    right: str
    relu: str | None = None

    @property
    def output(self) -> str:
        return self.relu or self.add


@dataclass(frozen=True)
class Gate:
    """A product of (N, C, H, W) ``values`` with one number for each channel of each item, ``gates`` (N, C, 1, 1), both of which integer
    layers give: squeeze and excitation (Hu et al. 2018, arXiv:1709.01507)."""

    output: str
    values: str
    gates: str


@dataclass(frozen=True)
class Affine:
    """A batch normalization that no convolution takes in, with the relu that follows it: a factor and a shift for each channel."""

    norm: str
    input: str
    relu: str | None = None

    @property
    def output(self) -> str:
        return self.relu or self.norm


@dataclass(frozen=True)
class ValueClass:
    """Values on one grid. ``members`` are node names; ``sources`` are those whose producer sets new values and that are
    observed; ``layers`` are the paths of the quantized layers that read them."""

    name: str
    members: tuple[str, ...]
    sources: tuple[str, ...]
    spec: ActivationSpec
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    units: tuple[Unit, ...]
    sums: tuple[Sum, ...]
    classes: tuple[ValueClass, ...]
    gates: tuple[Gate, ...] = ()
    affines: tuple[Affine, ...] = ()

    def class_of(self) -> dict[str, ValueClass]:
        return {member: c for c in self.classes for member in c.members}

    def inside(self) -> dict[str, Unit]:
        """Every node that runs within a unit, with that unit."""
        return {node: unit for unit in self.units for node in unit.nodes()}


def arrange(gm: fx.GraphModule, specs: Mapping[str, LayerSpec]) -> Layout:
    """The layout of ``gm`` when each module path in ``specs`` is quantized as it says.

    Layers without activation bits stay floating point (their weights alone are integers) and form no unit.
    """
    nodes = {node.name: node for node in gm.graph.nodes}
    foldable = {pair.bn for pair in find_pairs(gm) if pair.reason is None}
    starts = [
        node
        for node in gm.graph.nodes
        if kind(node) in ("conv", "linear") and (spec := specs.get(str(node.target))) and spec.weights and spec.activations
        if (read := source(node)) is not None and _is_value(read)
    ]
    units = [_chain(node, foldable) for node in starts]
    need = _needed(gm, units)
    units = _one_add_each([_with_add(unit, nodes, need) for unit in units])
    need = _needed(gm, units)
    inside = {name for unit in units for name in unit.nodes()}
    sums = [_sum(node) for node in gm.graph.nodes if _is_sum(node) and node.name not in inside and _end_of_sum(node).name in need]
    gates = [gate for node in gm.graph.nodes if node.name in need and (gate := _gate(node, units)) is not None]
    affines = [_affine(node) for node in gm.graph.nodes if _is_affine(node, inside) and _end_of_sum(node).name in need]
    return Layout(tuple(units), tuple(sums), _classes(gm, units, need, specs), tuple(gates), tuple(affines))


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _chain(layer: fx.Node, foldable: set[str]) -> Unit:
    end, bn = layer, None
    user = _only_user(end)
    if user is not None and kind(user) == "bn" and str(user.target) in foldable:
        end, bn = user, user.name
    activation, activation_kind = _activation_after(end, IN_KERNELS if isinstance(module_of(layer), nn.Conv2d) else _IN_OTHERS)
    read = source(layer)
    assert read is not None
    return Unit(
        path=str(layer.target),
        kind=kind(layer),
        layer=layer.name,
        input=read.name,
        bn=bn,
        output=activation or end.name,
        activation=activation,
        activation_kind=activation_kind,
    )


def _activation_after(end: fx.Node, known: tuple[str, ...]) -> tuple[str | None, str]:
    """The activation that runs inside the kernel; ``known`` are those that kernels of this kind have."""
    user = _only_user(end)
    if user is not None and kind(user) in known:
        return user.name, kind(user)
    return None, "none"


def _with_add(unit: Unit, nodes: Mapping[str, fx.Node], need: set[str]) -> Unit:
    """The unit with the residual addition that follows it, where its sum is needed as integers."""
    layer = nodes[unit.layer]
    if unit.activation or unit.kind != "conv" or not isinstance(module_of(layer), nn.Conv2d):
        return unit
    end = nodes[unit.output]
    add = _only_user(end)
    if add is None or kind(add) != "add" or add.kwargs or len(add.args) != 2:
        return unit
    others = [n for n in add.args if n is not end]
    if len(others) != 1 or not isinstance(others[0], fx.Node) or others[0].meta.get("shape") != end.meta.get("shape"):
        return unit
    activation, activation_kind = _activation_after(add, ("relu",))
    output = activation or add.name
    if output not in need or others[0].name not in need:
        return unit
    return replace(unit, output=output, add=add.name, other=others[0].name, activation=activation, activation_kind=activation_kind)


def _one_add_each(units: list[Unit]) -> list[Unit]:
    """An addition of two convolutions runs inside the later one; the earlier one gives up its claim."""
    last = {unit.add: unit.layer for unit in units if unit.add}
    plain = {"add": None, "other": None, "activation": None, "activation_kind": "none"}
    return [
        replace(unit, output=unit.bn or unit.layer, **plain) if unit.add and last[unit.add] != unit.layer else unit  # type: ignore[arg-type]
        for unit in units
    ]


def _needed(gm: fx.GraphModule, units: list[Unit]) -> set[str]:
    """Names of the nodes whose value some integer operation reads."""
    inputs = {unit.layer: unit for unit in units}
    inside = {node: unit for unit in units for node in unit.nodes()}
    need: set[str] = set()
    for node in reversed(list(gm.graph.nodes)):
        if not _is_value(node):
            continue
        for user in node.users:
            unit = inside.get(user.name)
            moved = kind(user) in (*CARRIES, *AVERAGES) and user.name in need
            added = _is_sum(user) and _end_of_sum(user).name in need
            added |= _is_affine(user, inside) and _end_of_sum(user).name in need
            added |= user.name in need and _gate(user, units) is not None
            if user.name in inputs or (unit is None and (moved or added)) or (unit is not None and unit.other == node.name):
                need.add(node.name)
    return need


def _is_value(node: fx.Node) -> bool:
    """Whether a node is a float32 tensor that depends on the input: parameters and sizes stay as they are."""
    return node.meta.get("dtype") == torch.float32 and node.op != "get_attr"


def _is_sum(node: fx.Node) -> bool:
    inputs = tensor_inputs(node)
    return kind(node) == "add" and len(inputs) == 2 and not node.kwargs and all(map(_is_value, inputs))


def _gate(node: fx.Node, units: list[Unit]) -> Gate | None:
    """``node`` as a gate where it is one whose factors are results of layers."""
    inputs = tensor_inputs(node)
    if kind(node) != "mul" or len(inputs) != 2 or node.kwargs or not all(map(_is_value, inputs)):
        return None
    given = {unit.output for unit in units}
    shape = node.meta.get("shape", ())
    one_each = (*shape[:2], 1, 1)
    for gates, values in (inputs, inputs[::-1]):
        if len(shape) == 4 and gates.meta.get("shape") == one_each and values.meta.get("shape") == shape and shape != one_each:
            return Gate(node.name, values.name, gates.name) if {gates.name, values.name} <= given else None
    return None


def _is_affine(node: fx.Node, inside: Mapping[str, Unit] | set[str]) -> bool:
    """Whether a node normalizes an image by fixed numbers, and no layer before it takes it in."""
    norm, read = module_of(node), source(node)
    if kind(node) != "bn" or node.name in inside or read is None or not _is_value(read) or len(node.meta.get("shape", ())) != 4:
        return False
    fixed = isinstance(norm, BATCH_NORMS) and norm.running_mean is not None and norm.running_var is not None and not norm.training
    return fixed and kind(read) not in ("conv", "conv_transpose", "linear")


def _affine(norm: fx.Node) -> Affine:
    read, end = source(norm), _end_of_sum(norm)
    assert read is not None
    return Affine(norm.name, read.name, None if end is norm else end.name)


def _end_of_sum(add: fx.Node) -> fx.Node:
    user = _only_user(add)
    return user if user is not None and kind(user) == "relu" else add


def _sum(add: fx.Node) -> Sum:
    left, right = tensor_inputs(add)
    end = _end_of_sum(add)
    return Sum(add.name, left.name, right.name, None if end is add else end.name)


def _classes(gm: fx.GraphModule, units: list[Unit], need: set[str], specs: Mapping[str, LayerSpec]) -> tuple[ValueClass, ...]:
    parent = {name: name for name in need}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    inside = {node for unit in units for node in unit.nodes()}
    sources = []
    for node in gm.graph.nodes:
        if node.name not in need:
            continue
        if kind(node) in CARRIES and node.name not in inside:
            reads = tensor_inputs(node)
            for read in reads:
                if read.name in need:
                    parent[find(read.name)] = find(node.name)
            if reads and all(read.name in need for read in reads):
                continue
        sources.append(node.name)
    members: dict[str, list[str]] = {}
    for node in gm.graph.nodes:
        if node.name in need:
            members.setdefault(find(node.name), []).append(node.name)
    readers: dict[str, list[Unit]] = {}
    for unit in units:
        readers.setdefault(find(unit.input), []).append(unit)
    every = [specs[unit.path].activations for unit in units]
    return tuple(
        ValueClass(
            name=names[0],
            members=tuple(names),
            sources=tuple(n for n in sources if n in names),
            # What only sums and averages read is held as finely as anything else.
            spec=_widest([specs[u.path].activations for u in readers.get(root, [])] or every),
            layers=tuple(u.path for u in readers.get(root, [])),
        )
        for root, names in members.items()
    )


def _widest(specs: list[ActivationSpec | None]) -> ActivationSpec:
    """A value has one grid: the reader that asks for most bits sets it."""
    given = [spec for spec in specs if spec is not None]
    return max(given, key=lambda spec: spec.bits) if given else ActivationSpec()
