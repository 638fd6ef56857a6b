"""What a key does to a layer's spec. An edit has an aim, taken from the first layer it is for, so that several layers come out
alike; what cannot be had of a layer is told in a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

from engine.events.event import LayerRow
from engine.planning.legality import legalize, pairs
from engine.recipe.number_formats import NUMBER_FORMATS, format_entry
from engine.recipe.presets import DYNAMIC
from engine.recipe.spec import FP32, METHODS, ActivationSpec, Granularity, LayerSpec, Observer, WeightSpec
from qtui.spec_words import activations

EditName = Literal["weights", "activations", "granularity", "rounding", "observer", "symmetric", "keep", "reset"]

WEIGHT_BITS = (8, 6, 4, 3, 2)
# The inputs of a layer that can have a scale for each token have that (``DYNAMIC``), a grid from calibration, or floats.
STATIC = ActivationSpec(8, observer="histogram-mse")
ACTIVATION_BITS = (8, 7, 6, 4)
GROUP_SIZES = (32, 64, 128)
OBSERVERS: tuple[Observer, ...] = ("minmax", "moving-average", "percentile", "histogram-mse", "entropy")

T = TypeVar("T")
Scheme = tuple[Granularity, int]


@dataclass(frozen=True)
class Before:
    """What a layer was when it was last quantized, for quantizing it again."""

    spec: LayerSpec
    activations: ActivationSpec


@dataclass(frozen=True)
class Edit:
    """``aim`` gives what the first layer becomes next; ``apply`` gives another layer that, or says why not. ``aims`` are all that a
    layer can become, by what they are called, for choosing among them; empty where there is nothing to choose."""

    aim: Callable[[LayerRow, LayerSpec], Any]
    apply: Callable[[LayerRow, LayerSpec, Any, Before], LayerSpec | str]
    aims: Callable[[LayerRow, LayerSpec], Mapping[str, Any]] = lambda row, spec: {}


def inputs(row: LayerRow) -> int:
    """The weights that feed one output."""
    return math.prod(row.weight_shape[1:])


def schemes(row: LayerRow, bits: int) -> tuple[Scheme, ...]:
    """Granularities that make a difference for this layer at this width."""
    able = row.capabilities
    plain: list[Scheme] = [(name, 0) for name in able.granularities if name != "per-group"]
    sizes = GROUP_SIZES if "per-group" in able.granularities and bits <= able.group_bits else ()
    return (*plain, *(("per-group", size) for size in sizes if size < inputs(row)))


def no_groups(row: LayerRow, spec: LayerSpec) -> str | None:
    """Why groups are passed over for a layer."""
    if spec.weights is None:
        return None
    if inputs(row) <= GROUP_SIZES[0]:
        return f"groups of {GROUP_SIZES[0]} need more inputs: {row.path} has {inputs(row)} for each output"
    widest = row.capabilities.group_bits
    return f"groups need {widest} bits or fewer: w changes the bits" if spec.weights.bits > widest else None


def _after(order: Sequence[T], current: T) -> T:
    return order[(order.index(current) + 1) % len(order)] if current in order else order[0]


def _narrower(order: Sequence[int], bits: int) -> int:
    return next((wide for wide in order if wide < bits), order[0])


def _next_weights(row: LayerRow, spec: LayerSpec) -> int | str | None:
    """Fewer bits, and after the fewest the formats that are no integers, where the layer can have them."""
    if spec.weights is None:
        return None
    formats = [name for name in NUMBER_FORMATS if name in row.capabilities.formats]
    if spec.weights.format in formats[:-1]:
        return formats[formats.index(spec.weights.format) + 1]
    if formats and not spec.weights.format and spec.weights.bits <= WEIGHT_BITS[-1]:
        return formats[0]
    return WEIGHT_BITS[0] if spec.weights.format else _narrower(WEIGHT_BITS, spec.weights.bits)


def _every_weights(row: LayerRow, spec: LayerSpec) -> dict[str, int | str]:
    return {**{f"w{bits}": bits for bits in WEIGHT_BITS}, **{name: name for name in NUMBER_FORMATS if name in row.capabilities.formats}}


def _weights(row: LayerRow, spec: LayerSpec, aim: int | str, before: Before) -> LayerSpec | str:
    if spec.weights is None:
        return _kept(row)
    if isinstance(aim, int):
        return replace(spec, weights=replace(spec.weights, bits=aim, format=""))
    if aim not in row.capabilities.formats:
        return f"{aim} is for matrices of language models: {row.path} has integers"
    return LayerSpec(WeightSpec.of({**asdict(spec.weights), "format": aim}))


def _rounded_inputs(row: LayerRow, spec: LayerSpec) -> dict[str, ActivationSpec]:
    """The ways to round what a matrix of a language model reads, as they go with its weights."""
    if spec.weights is None or not spec.weights.format:
        return {"a8 dynamic": DYNAMIC, "a8": STATIC}
    found = [ActivationSpec.of({"format": name, "dynamic": True}) for name in pairs(spec.weights.format, row.capabilities)]
    found += [replace(one, dynamic=False) for one in found if not one.group_size]
    return {activations(one): one for one in found}


def _next_activations(row: LayerRow, spec: LayerSpec) -> Any:
    able = row.capabilities
    if not able.rounds_inputs:
        return None
    if "dynamic" in able.activations:
        return _after((*_rounded_inputs(row, spec).values(), None), spec.activations)
    if spec.activations is None:
        return ACTIVATION_BITS[0]
    widths = [bits for bits in ACTIVATION_BITS if bits in able.activation_bits]
    return next((bits for bits in widths if bits < spec.activations.bits), None)


def _every_activations(row: LayerRow, spec: LayerSpec) -> dict[str, Any]:
    able = row.capabilities
    if not able.rounds_inputs:
        return {}
    if "dynamic" in able.activations:
        return {**_rounded_inputs(row, spec), "fp32": None}
    return {**{f"a{bits}": bits for bits in ACTIVATION_BITS if bits in able.activation_bits}, "fp32": None}


def _activations(row: LayerRow, spec: LayerSpec, aim: Any, before: Before) -> LayerSpec | str:
    if spec.weights is None:
        return _kept(row)
    if not row.capabilities.rounds_inputs:
        return f"{row.path} looks rows up: it has no activations to round"
    if "dynamic" in row.capabilities.activations:
        return replace(spec, activations=aim)
    return replace(spec, activations=replace(spec.activations or before.activations, bits=aim) if aim else None)


def _scheme(row: LayerRow, weights: WeightSpec) -> Scheme:
    scheme: Scheme = (weights.granularity, weights.group_size if weights.granularity == "per-group" else 0)
    # What is asked for and cannot be had stands where what comes of it stands.
    return ("per-channel", 0) if scheme[1] and weights.bits > row.capabilities.group_bits else scheme


def _next_scheme(row: LayerRow, spec: LayerSpec) -> Scheme | None:
    if spec.weights is None:
        return None
    order, current = schemes(row, spec.weights.bits), _scheme(row, spec.weights)
    if current not in order and current[1]:
        return next((scheme for scheme in order if scheme[1] > current[1]), order[0])
    return _after(order, current)


def _every_scheme(row: LayerRow, spec: LayerSpec) -> dict[str, Scheme]:
    if spec.weights is None:
        return {}
    called = {"per-tensor": "one scale", "per-channel": "per channel"}
    return {called.get(scheme[0], f"groups of {scheme[1]}"): scheme for scheme in schemes(row, spec.weights.bits)}


def _granularity(row: LayerRow, spec: LayerSpec, aim: Scheme, before: Before) -> LayerSpec | str:
    if spec.weights is None:
        return _kept(row)
    name, size = aim
    if own := spec.weights.format and format_entry(spec.weights.format).block:
        return f"{spec.weights.format} has blocks of {own}: w changes to integers"
    if aim not in schemes(row, spec.weights.bits):
        return no_groups(row, spec) or f"groups of {size} need more inputs: {row.path} has {inputs(row)} for each output"
    return replace(spec, weights=replace(spec.weights, granularity=name, group_size=size or WeightSpec.group_size))


def _next_rounding(row: LayerRow, spec: LayerSpec) -> Any:
    if spec.weights is None:
        return None
    # What is asked for and cannot be had stands where what comes of it stands.
    had = legalize(spec, row.capabilities, ACTIVATION_BITS[0])[0].weights
    return _after(row.capabilities.methods, had.method if had else spec.weights.method)


def _rounding(row: LayerRow, spec: LayerSpec, aim: Any, before: Before) -> LayerSpec | str:
    if spec.weights and aim not in row.capabilities.methods:
        if row.capabilities.between_floats:
            return f"{row.path} is outside of the blocks: no text reaches the method {aim}"
        return f"{aim} {METHODS[aim].needs_blocks}: {row.path} is in no decoder's block"
    return replace(spec, weights=replace(spec.weights, method=aim)) if spec.weights else _kept(row)


def _observer(row: LayerRow, spec: LayerSpec, aim: Observer, before: Before) -> LayerSpec | str:
    if spec.activations and spec.activations.dynamic:
        return _no_activations(row, spec)
    return replace(spec, activations=replace(spec.activations, observer=aim)) if spec.activations else _no_activations(row, spec)


def _next_symmetric(row: LayerRow, spec: LayerSpec) -> bool:
    if row.capabilities.affine:
        return not (spec.weights and spec.weights.symmetric)
    return not (spec.activations and spec.activations.symmetric)


def _symmetric(row: LayerRow, spec: LayerSpec, aim: bool, before: Before) -> LayerSpec | str:
    if row.capabilities.affine:
        return replace(spec, weights=replace(spec.weights, symmetric=aim)) if spec.weights else _kept(row)
    return replace(spec, activations=replace(spec.activations, symmetric=aim)) if spec.activations else _no_activations(row, spec)


def _keep(row: LayerRow, spec: LayerSpec, aim: bool, before: Before) -> LayerSpec | str:
    if not aim:
        return spec if spec.weights else before.spec
    return FP32


def _reset(row: LayerRow, spec: LayerSpec, aim: None, before: Before) -> LayerSpec | str:
    return row.proposed if spec != row.proposed else f"{row.path} is as proposed already"


def _kept(row: LayerRow) -> str:
    return f"{row.path} is kept in fp32: f quantizes it again"


def _no_activations(row: LayerRow, spec: LayerSpec) -> str:
    if spec.weights and spec.activations:
        return f"{row.path} rounds what it reads as it comes: there is no range to observe"
    return f"{row.path} has fp32 activations, so there is no range to observe: a quantizes them" if spec.weights else _kept(row)


EDITS: dict[EditName, Edit] = {
    "weights": Edit(_next_weights, _weights, _every_weights),
    "activations": Edit(_next_activations, _activations, _every_activations),
    "granularity": Edit(_next_scheme, _granularity, _every_scheme),
    "rounding": Edit(_next_rounding, _rounding, lambda row, spec: {name: name for name in row.capabilities.methods}),
    "observer": Edit(
        lambda row, spec: _after(OBSERVERS, spec.activations.observer) if spec.activations else None,
        _observer,
        lambda row, spec: {name: name for name in OBSERVERS},
    ),
    "symmetric": Edit(_next_symmetric, _symmetric),
    "keep": Edit(lambda row, spec: spec.weights is not None, _keep),
    "reset": Edit(lambda row, spec: None, _reset),
}
