"""What each layer is to become, and why: a proposal or a preset, under the rules of a recipe. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.events.rows import LayerRow
from engine.planning.layer import Layer
from engine.planning.layer_speed import stored
from engine.planning.legality import legalize
from engine.planning.plan import Plan
from engine.planning.proposal import Proposal, propose
from engine.planning.rules import resolve, unused
from engine.recipe.presets import Place, asked
from engine.recipe.spec import FP32, LayerSpec, Rule


def plan(layers: Sequence[Layer], preset: str = "default", rules: Sequence[Rule] = (), activation_bits: int = 8) -> Plan:
    """Resolve ``rules``, then ``preset``, on every layer.

    ``layers`` are in the model's order; one that folds into another, or is tied to it, comes after that. ``activation_bits`` is the
    widest that the machine multiplies without saturating. A rule that matches nothing gives a warning. Raises UsageError for a preset
    that the layers do not have.
    """
    paths = [layer.path for layer in layers if layer.quantizable]
    used: set[int] = set()
    rows: dict[str, LayerRow] = {}
    places = _places(layers)
    for layer in layers:
        index = resolve(layer, rules) if layer.ruled else None
        used |= {index} if index is not None else set()
        rule = rules[index] if index is not None else None
        rows[layer.path] = _row(layer, _proposed(layer, paths), preset, rule, activation_bits, rows, places[layer.path])
    return Plan(tuple(rows.values()), unused(rules, used, all(layer.ruled for layer in layers)))


def _places(layers: Sequence[Layer]) -> dict[str, Place]:
    numbers = {layer.path: next((int(part) for part in layer.path.split(".") if part.isdigit()), 0) for layer in layers}
    depth, tied = max(numbers.values(), default=0) + 1, {layer.tied for layer in layers}
    return {path: Place(path, number, depth, path in tied) for path, number in numbers.items()}


def _proposed(layer: Layer, paths: Sequence[str]) -> Proposal:
    """The proposal, by what was measured of the layer's speed too."""
    spec, why = propose(layer, paths)
    if layer.pace.stored and spec.weights:
        return stored(spec), layer.pace.why
    return spec, _joined(why, layer.pace.why)


def _row(
    layer: Layer, proposal: Proposal, preset: str, rule: Rule | None, activation_bits: int, rows: Mapping[str, LayerRow],
    at: Place,
) -> LayerRow:  # fmt: skip
    proposed, proposed_why = proposal
    fact = layer.pace.fact
    if rule is not None:
        spec, source, why = rule.spec, f"rule {rule.match}", _joined(rule.why, fact)
    elif not layer.quantizable:
        spec, source, why = FP32, "kind", ""
    elif preset == "default":
        spec, source, why = proposed, "proposal", proposed_why
    else:
        spec, source, why = asked(preset, layer.capabilities.role, at), f"preset {preset}", _joined(f"preset {preset}", fact)
    obstacle = _fate(rows[layer.folds_into]) if layer.folds_into else layer.obstacle
    actual, limit = (FP32, obstacle) if obstacle else legalize(spec, layer.capabilities, activation_bits)
    if layer.tied is not None:
        actual, limit = _tied(actual, rows[layer.tied])
        obstacle = limit
    return LayerRow(
        layer.path, layer.kind, layer.node, layer.params, layer.weight_shape, spec, actual, proposed, source, _joined(why, limit),
        proposed_why or obstacle or "", layer.time_share, layer.kernel(actual), obstacle is None, obstacle,
        layer.pace.int8_ms, layer.pace.fp32_ms, layer.capabilities, layer.tied, layer.pace.steady,
    )  # fmt: skip


def _tied(actual: LayerSpec, first: LayerRow) -> tuple[LayerSpec, str]:
    """One matrix has one form: how it is multiplied is still the layer's own."""
    weights = first.actual.weights
    return LayerSpec(weights, actual.activations if weights else None), f"shares the matrix of {first.path}, and its weights"


def _fate(layer: LayerRow) -> str:
    """What becomes of the normalization that reads ``layer``: only a layer on integers takes it in."""
    integer = layer.actual.weights and layer.actual.activations
    return f"folded into {layer.path} at conversion" if integer else f"stays as it is: {layer.path} computes in fp32"


def _joined(*parts: str | None) -> str:
    return "; ".join(filter(None, parts))
