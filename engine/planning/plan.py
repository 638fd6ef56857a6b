"""What each layer is to become, and why: a proposal or a preset, under the rules of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import fx, nn

from engine.events.event import LayerRow
from engine.kernels.base import geometry
from engine.kernels.probe import Machine
from engine.lowering.graph.fuse import find_pairs
from engine.lowering.graph.kinds import BATCH_NORMS, kind, module_of
from engine.planning.layer_speed import Pace, stored
from engine.planning.legality import NO_KERNEL, NOT_FOLDED, possible
from engine.planning.proposal import propose
from engine.recipe.presets import PRESETS
from engine.recipe.spec import FP32, LayerSpec, Rule


@dataclass(frozen=True)
class Plan:
    """One row a module that holds parameters. ``requested`` is what rule, preset or proposal asks, ``why`` a sentence,
    ``rule`` names where the request comes from, ``node`` is the first node that calls the module."""

    layers: tuple[LayerRow, ...]
    warnings: tuple[str, ...] = ()

    def specs(self) -> dict[str, LayerSpec]:
        return {layer.path: layer.actual for layer in self.layers}


def plan(
    gm: fx.GraphModule,
    machine: Machine,
    preset: str = "default",
    rules: Sequence[Rule] = (),
    time_share: Mapping[str, float] | None = None,
    paces: Mapping[str, Pace] | None = None,
) -> Plan:
    """Resolve ``rules``, then ``preset``, on every layer of ``gm`` that holds parameters.

    ``time_share`` maps node names to their part (0..1) of the fp32 time, ``paces`` layers to their speed
    here. A rule that matches nothing gives a warning. The rows do not know their ``kernel``: that takes the layout of the whole plan.
    """
    nodes = _first_calls(gm)
    quantizable = [path for path, node in nodes.items() if kind(node) in ("conv", "linear")]
    total = sum(p.numel() for p in gm.parameters()) or 1
    pairs = find_pairs(gm)
    folded = {pair.bn: pair.conv for pair in pairs if pair.reason is None}
    refused = {pair.bn: pair.reason for pair in pairs if pair.reason is not None}
    used: set[int] = set()
    layers: dict[str, LayerRow] = {}
    for path, node in nodes.items():
        module = module_of(node)
        assert module is not None
        share = sum((time_share or {}).get(n.name, 0.0) for n in gm.graph.nodes if n.op == "call_module" and n.target == path)
        params = sum(p.numel() for p in module.parameters())
        index = next((i for i, rule in enumerate(rules) if _matches(rule, path, module)), None)
        used |= {index} if index is not None else set()
        proposed, proposed_why, obstacle = FP32, "", None
        if path in folded:
            obstacle = _fate(layers[folded[path]])
        elif path not in quantizable:
            obstacle = _no_kernel(path, module, refused)
        else:
            proposed, proposed_why = propose(path, node, module, quantizable, params / total, share)
            obstacle = why_not(module)
        pace = (paces or {}).get(path, Pace())
        if pace.stored and proposed.weights:
            proposed, proposed_why = stored(proposed), pace.why
        else:
            proposed_why = _joined(proposed_why, pace.why)
        if index is not None:
            why = _joined(rules[index].why, pace.fact)
            spec, rule = rules[index].spec, f"rule {rules[index].match}"
        elif path not in quantizable:
            spec, rule, why = FP32, "kind", ""
        elif preset == "default":
            spec, rule, why = proposed, "proposal", proposed_why
        else:
            spec, rule, why = PRESETS[preset], f"preset {preset}", _joined(f"preset {preset}", pace.fact)
        actual, limit = (FP32, obstacle) if obstacle else possible(spec, machine.activation_bits)
        layers[path] = LayerRow(
            path, type(module).__name__, node.name, params, _weight_shape(module), spec, actual, proposed, rule,
            _joined(why, limit), proposed_why or obstacle or "", share, "", obstacle is None, obstacle,
            pace.int8_ms, pace.fp32_ms,
        )  # fmt: skip
    unused = [rule for i, rule in enumerate(rules) if i not in used]
    return Plan(tuple(layers.values()), tuple(_unused(rule, rules) for rule in unused))


def _fate(layer: LayerRow) -> str:
    """What becomes of the normalization that reads ``layer``: only a layer on integers takes it in."""
    integer = layer.actual.weights and layer.actual.activations
    return f"folded into {layer.path} at conversion" if integer else f"stays as it is: {layer.path} computes in fp32"


def _no_kernel(path: str, module: nn.Module, refused: Mapping[str, str]) -> str:
    """Why a module that is no convolution and no linear layer stays in fp32."""
    if isinstance(module, BATCH_NORMS):
        return f"{NOT_FOLDED}{refused.get(path, 'no convolution or linear layer is right before it')}"
    if type(module).__module__.partition(".")[0] != "torch":
        return "stays whole: its forward could not be traced"
    return NO_KERNEL


def _weight_shape(module: nn.Module) -> tuple[int, ...]:
    weight = getattr(module, "weight", None)
    return tuple(weight.shape) if isinstance(weight, torch.Tensor) else ()


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


def _joined(*parts: str | None) -> str:
    return "; ".join(filter(None, parts))


def why_not(module: nn.Module) -> str | None:
    """Why a convolution or linear layer cannot be quantized at all, whatever is asked."""
    if any(p.dtype != torch.float32 for p in module.parameters()):
        return f"its parameters are {next(module.parameters()).dtype}, not float32"
    try:
        geometry(module)
    except ValueError as problem:
        return f"no integer kernel takes {problem}"
    return None
