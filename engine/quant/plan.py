"""What each layer is to become, and why: a proposal or a preset, under the rules of a recipe.

A plan is a value: editing it returns a new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import fx, nn

from engine.graph.fuse import find_pairs
from engine.graph.kinds import kind, module_of
from engine.kernels.base import geometry
from engine.kernels.probe import Machine
from engine.quant.proposal import preset_spec, propose
from engine.spec import FP32, LayerSpec, Rule


@dataclass(frozen=True)
class PlannedLayer:
    """One module. ``requested`` is what rule, preset or proposal asks; ``actual`` what this machine can do of it.

    ``why`` is a sentence; ``rule`` names where the request comes from; ``node`` is the first node that calls it.
    """

    path: str
    kind: str
    node: str
    params: int
    requested: LayerSpec
    actual: LayerSpec
    rule: str
    why: str
    time_share: float = 0.0


@dataclass(frozen=True)
class Plan:
    layers: tuple[PlannedLayer, ...]
    warnings: tuple[str, ...] = ()

    def specs(self) -> dict[str, LayerSpec]:
        return {layer.path: layer.actual for layer in self.layers}

    def edit(self, path: str, spec: LayerSpec, machine: Machine) -> Plan:
        """A new plan in which the layer at ``path`` is asked to become ``spec``."""
        return replace(self, layers=tuple(
            replace(layer, requested=spec, actual=_possible(spec, machine)[0], rule="edited", why="chosen by hand")
            if layer.path == path else layer for layer in self.layers
        ))  # fmt: skip


def plan(
    gm: fx.GraphModule,
    machine: Machine,
    preset: str = "default",
    rules: Sequence[Rule] = (),
    time_share: Mapping[str, float] | None = None,
) -> Plan:
    """Resolve ``rules``, then ``preset``, on every layer of ``gm`` that holds parameters.

    ``time_share`` maps node names to their part (0..1) of the fp32 time. A rule that matches nothing gives a warning.
    """
    nodes = _first_calls(gm)
    quantizable = [path for path, node in nodes.items() if kind(node) in ("conv", "linear")]
    total = sum(p.numel() for p in gm.parameters()) or 1
    folded = {pair.bn: pair.conv for pair in find_pairs(gm) if pair.reason is None}
    used: set[int] = set()
    layers = []
    for path, node in nodes.items():
        module = module_of(node)
        assert module is not None
        share = sum((time_share or {}).get(n.name, 0.0) for n in gm.graph.nodes if n.op == "call_module" and n.target == path)
        params = sum(p.numel() for p in module.parameters())
        index = next((i for i, rule in enumerate(rules) if _matches(rule, path, module)), None)
        used |= {index} if index is not None else set()
        obstacle = _obstacle(node, module)
        if index is not None:
            spec, rule, why = rules[index].spec, f"rule {rules[index].match}", f"the recipe's rule {rules[index].match!r} asks for it"
        elif path in folded:
            spec, rule, why = FP32, "kind", f"folded into {folded[path]} at conversion"
        elif path not in quantizable:
            spec, rule, why = FP32, "kind", "no integer kernel for this kind of layer"
        elif preset == "default":
            spec, why = propose(path, node, module, quantizable, params / total, share)
            rule = "proposal"
        else:
            spec, rule, why = preset_spec(preset), f"preset {preset}", f"preset {preset}"
        actual, limit = (FP32, obstacle) if obstacle else _possible(spec, machine)
        layers.append(
            PlannedLayer(path, type(module).__name__, node.name, params, spec, actual, rule, f"{why}; {limit}" if limit else why, share)
        )
    unused = [rule for i, rule in enumerate(rules) if i not in used]
    return Plan(tuple(layers), tuple(_unused(rule, rules) for rule in unused))


def _first_calls(gm: fx.GraphModule) -> dict[str, fx.Node]:
    found: dict[str, fx.Node] = {}
    for node in gm.graph.nodes:
        module = module_of(node)
        if module is not None and any(True for _ in module.parameters()):
            found.setdefault(str(node.target), node)
    return found


def _matches(rule: Rule, path: str, module: nn.Module) -> bool:
    if rule.match.startswith("kind:"):
        return fnmatchcase(type(module).__name__, rule.match.removeprefix("kind:"))
    return fnmatchcase(path, rule.match)


def _unused(rule: Rule, rules: Sequence[Rule]) -> str:
    where = f"line {rule.line}: " if rule.line else ""
    shadowed = any(other.match == rule.match and other is not rule for other in rules)
    return f"{where}rule {rule.match!r} matches no layer" + (" that an earlier rule has not taken" if shadowed else "")


def _obstacle(node: fx.Node, module: nn.Module) -> str | None:
    """Why a layer cannot be quantized at all, whatever is asked."""
    if kind(node) not in ("conv", "linear"):
        return None if kind(node) == "bn" else "kept in fp32"
    if any(p.dtype != torch.float32 for p in module.parameters()):
        return f"its parameters are {next(module.parameters()).dtype}, not float32"
    try:
        geometry(module)
    except ValueError as problem:
        return f"no integer kernel takes {problem}"
    return None


def _possible(spec: LayerSpec, machine: Machine) -> tuple[LayerSpec, str | None]:
    """What the machine can do of ``spec``, and a sentence where that is less."""
    notes = []
    if spec.weights and spec.weights.granularity == "per-group" and spec.weights.bits > 6:
        spec = replace(spec, weights=replace(spec.weights, granularity="per-channel"))
        notes.append("groups need 6 bits or fewer, so one scale per channel")
    if spec.activations and spec.activations.bits > machine.activation_bits:
        spec = replace(spec, activations=replace(spec.activations, bits=machine.activation_bits))
        notes.append("7-bit activations: without VNNI the sums of 8-bit products saturate")
    return spec, "; ".join(notes) or None
