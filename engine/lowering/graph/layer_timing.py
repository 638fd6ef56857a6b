"""timing: each layer alone on its integer kernel and in fp32, before anything is quantized."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import replace
from math import prod

from torch import Tensor, fx, nn

from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.events.progress import Ticker
from engine.kernels.base import Kernel, geometry
from engine.kernels.probe import Machine
from engine.kernels.stopwatch import Stopwatch, machine_key
from engine.kernels.timing import LayerShape, Timing, time_layer
from engine.lowering.graph.kinds import kind, module_of
from engine.lowering.graph.layers import why_not
from engine.lowering.graph.layout import Layout, Unit, arrange
from engine.lowering.graph.trial import Bench, linked
from engine.planning.layer_speed import Pace, Paces, decide, is_open, undecided
from engine.planning.plan import Plan
from engine.recipe.presets import PRESETS

SECONDS = 3.0
# Items of the larger of the two calls that are timed.
BATCH = 64
# A batch whose values take more memory than calibration does is made smaller.
_VALUES = 2**22

Sizes = Mapping[str, tuple[int, ...]]


def timing(
    gm: fx.GraphModule, machine: Machine, kernels: Sequence[Kernel], sizes: Sizes, proposal: Plan, stop: StopToken,
    given: Collection[str] | None = None,
) -> Generator[Event, None, Paces]:  # fmt: skip
    """The pace of each layer that an integer kernel computes; none where layers are simulated.

    ``sizes`` are those of each node's value for one image; ``given`` names the layers that were decided before to compute in
    fp32. Equal layers are measured once. Raises Cancelled.
    """
    top = 2**machine.activation_bits - 1
    watch = Stopwatch(stop, SECONDS, machine_key())
    shapes = {} if all(kernel.simulated for kernel in kernels) else _shapes(gm, sizes, top)
    ticker = Ticker("plan", len(shapes), "layers", clock=stop.clock)
    paces: dict[str, Pace] = {}
    for path, calls in shapes.items():
        single = _sum(calls, kernels, watch, 1)
        if single is not None:
            paces[path] = Pace(single, _sum(calls, kernels, watch, _batch(calls)) if single.slower else None)
        yield from ticker.advance()
    # What a rule asks for is not the proposal's to decide.
    proposed = [row.path for row in proposal.layers if row.rule == "proposal" and row.actual.weights and row.actual.activations]
    judged = {path: paces.get(path, Pace()) for path in proposed}
    if given is None and not watch.quiet:
        unsteady = {path: replace(pace, steady=False) for path, pace in paces.items()}
        return Paces(unsteady | {path: undecided(pace) for path, pace in judged.items() if path in paces}, False)
    unsettled = [path for path, pace in judged.items() if is_open(pace)]
    specs, bench = proposal.specs(), Bench(gm, kernels, sizes, watch, top)
    batch = min((_batch(shapes[path]) for path in unsettled), default=BATCH)
    paces |= dict(decide(judged, specs, linked(gm, arrange(gm, specs), unsettled), bench.race, batch, given))
    watch.keep()
    return Paces(paces if watch.quiet else {path: replace(pace, steady=False) for path, pace in paces.items()})


def _sum(calls: Sequence[LayerShape], kernels: Sequence[Kernel], watch: Stopwatch, batch: int) -> Timing | None:
    """All calls of a module together."""
    found = [time_layer(shape, kernels, watch, batch) for shape in calls]
    total = found[0]
    for more in found[1:]:
        total = total + more if total and more else None
    return total


def _batch(calls: Sequence[LayerShape]) -> int:
    return max(2, min(BATCH, _VALUES // max(prod(shape.input) for shape in calls)))


def _shapes(gm: fx.GraphModule, sizes: Sizes, top: int) -> dict[str, list[LayerShape]]:
    """The calls of each layer as they would be with all layers on integers."""
    everything = {
        str(node.target): PRESETS["w8a8"] for node in gm.graph.nodes if kind(node) in ("conv", "linear") and why_not(_module(node)) is None
    }
    layout, nodes = arrange(gm, everything), {node.name: node for node in gm.graph.nodes}
    found: dict[str, list[LayerShape]] = {}
    for unit in layout.units:
        if unit.input in sizes:
            found.setdefault(unit.path, []).append(_shape(nodes[unit.layer], unit, layout, sizes[unit.input], top))
    return found


def _module(node: fx.Node) -> nn.Module:
    module = module_of(node)
    assert module is not None
    return module


def _shape(node: fx.Node, unit: Unit, layout: Layout, size: tuple[int, ...], top: int) -> LayerShape:
    module = _module(node)
    weight: Tensor = module.weight  # type: ignore[assignment]
    biased = unit.bn is not None or getattr(module, "bias", None) is not None
    return LayerShape(
        unit.kind, tuple(weight.shape), size, biased, unit.activation_kind, unit.other is not None, unit.output in layout.class_of(),
        **geometry(module), top=top,
    )  # fmt: skip
