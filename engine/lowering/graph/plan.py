"""plan: what each layer is to become on this machine, and why."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx

from engine.events.event import Event, LayerRow, Notice, Planned, Table
from engine.events.speed import relative_speed
from engine.kernels.base import IntegerLayer, Kernel, geometry, kernel_of_steps
from engine.kernels.choose import why_simulated
from engine.kernels.probe import Machine
from engine.lowering.graph.kinds import module_of
from engine.lowering.graph.layers import plan as make_plan
from engine.lowering.graph.layout import Layout, Unit, arrange
from engine.numerics.qparams import QParams
from engine.planning.layer import Layer, Output
from engine.planning.layer_speed import Pace
from engine.planning.plan import Plan
from engine.recipe.recipe import Recipe


def plan(
    gm: fx.GraphModule, machine: Machine, kernels: Sequence[Kernel], recipe: Recipe, time_share: Mapping[str, float], fp32_bytes: int,
    again: bool = False, paces: Mapping[str, Pace] | None = None, outputs: Mapping[str, Output] | None = None,
    others: Sequence[Layer] = (),
) -> Generator[Event, None, tuple[Plan, Layout]]:  # fmt: skip
    """The plan of ``gm`` and its layout. ``kernels`` are tried in order; ``fp32_bytes`` is the size of the folded fp32 model
    as a file. ``again`` leaves out what was said of the machine before. ``paces`` are what ``timing`` found, ``outputs`` the layers that
    give outputs which the task calls sensitive, ``others`` layers that are not in ``gm``."""
    made = make_plan(gm, machine, recipe.preset, recipe.layer_rules(), time_share, paces, outputs, others)
    layout = arrange(gm, made.specs())
    labels = _labels(gm, layout, kernels)
    made = replace(made, layers=tuple(replace(layer, kernel=_kernel(layer, labels)) for layer in made.layers))
    known = {layer.path for layer in made.layers if layer.editable}
    unknown = [f"slower: {name} is no layer that can be quantized" for name in recipe.slower or () if name not in known]
    for text in (*made.warnings, *unknown, *(() if again else _about(machine))):
        yield Notice(text, "warning")
    rows = tuple(
        (layer.path, layer.kind, str(layer.actual), relative_speed(layer.int8_ms, layer.fp32_ms, layer.steady), layer.why)
        for layer in made.layers
    )
    yield Table("plan", f"Plan ─ {len(rows)} layers", ("layer", "kind", "becomes", "int8 alone", "why"), rows)
    yield Planned(made.layers, recipe.preset, machine.activation_bits, fp32_bytes)
    return made, layout


def _about(machine: Machine) -> list[str]:
    said = [why_simulated(machine)]
    if machine.saturates:
        said.append(f"{machine.isa} has no VNNI: sums of 8-bit products saturate here, activations use 7 bits")
    return [text for text in said if text]


def about_device(device: str, kernels: Sequence[Kernel]) -> Generator[Event, None, None]:
    """What a GPU does in a run, and what it does not: torch has no integer convolution for one."""
    if device == "cpu":
        return
    where = "simulated on the processor" if all(kernel.simulated for kernel in kernels) else "measured on the processor's integer kernels"
    yield Notice(
        f"{device} calibrates and trains; the quantized model is {where}, since torch has no integer convolution for a GPU: "
        "there it runs as one of its exports"
    )


def stored_label(bits: int) -> str:
    """What a layer runs on whose weights alone are integers."""
    return f"torch fp32 on weights stored in {bits} bits"


def _kernel(layer: LayerRow, labels: Mapping[str, str]) -> str:
    inside = labels.get(layer.node) or labels.get(layer.path)
    return inside or (stored_label(layer.actual.weights.bits) if layer.actual.weights else "torch fp32")


def _labels(gm: fx.GraphModule, layout: Layout, kernels: Sequence[Kernel]) -> dict[str, str]:
    """The label of each unit's kernel: by path of the layer, by node of the normalization folded into it, and of those
    that are steps of their own."""
    nodes = {node.name: node for node in gm.graph.nodes}
    integer = layout.class_of()
    found: dict[str, str] = {}
    for unit in reversed(layout.units):
        layer = _layer(nodes[unit.layer], unit, unit.output in integer)
        label = next((kernel.label(layer) for kernel in kernels if kernel.refuses(layer) is None), "torch fp32")
        found |= {unit.path: label, **({unit.bn: label} if unit.bn else {})}
    name = kernel_of_steps(kernels)
    return found | ({affine.norm: name for affine in layout.affines} if name else {})


def _layer(node: fx.Node, unit: Unit, integer_output: bool) -> IntegerLayer:
    """The layer as a kernel is asked about it, with grids and scales that stand for those to come."""
    module, grid = module_of(node), QParams(1.0, 0)
    weight: torch.Tensor = module.weight  # type: ignore[union-attr, assignment]
    return IntegerLayer(
        unit.kind, weight, torch.ones(len(weight)), None, grid, grid if integer_output else None, unit.activation_kind,
        grid if unit.other else None, **geometry(module),
    )  # fmt: skip
