"""The nearest of what is asked of a layer that can be had. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

from engine.recipe.capabilities import Capabilities
from engine.recipe.number_formats import FLOAT_BLOCKS, PAIRS, format_entry
from engine.recipe.presets import DYNAMIC
from engine.recipe.spec import FP32, METHODS, ActivationSpec, LayerSpec, WeightSpec

NO_KERNEL = "no integer kernel for this kind of layer"
NOT_FOLDED = "is not folded: "
_NO_TEXT = "outside of the blocks no text reaches the method {method}"

Limited = tuple[LayerSpec, str | None]


def legalize(spec: LayerSpec, capabilities: Capabilities, activation_bits: int) -> Limited:
    """The nearest that can be had of ``spec``, and a sentence where that is less. ``activation_bits`` is the widest that the
    machine multiplies without saturating.

    >>> legalize(LayerSpec(WeightSpec(8, "per-group")), CONVOLUTION, 8)[1]
    'groups need 6 bits or fewer, so one scale per channel'
    """
    if spec.weights is None:
        return FP32, None
    notes: dict[str, None] = {}
    for limit in _LIMITS:
        spec, note = limit(spec, capabilities)
        notes |= {note: None} if note else {}
    # Kernels that know no narrower width look to their sums themselves.
    narrow = max((bits for bits in capabilities.activation_bits if bits <= activation_bits), default=None)
    if spec.activations and spec.activations.bits > activation_bits and narrow:
        spec = replace(spec, activations=replace(spec.activations, bits=narrow))
        notes["7-bit activations: without VNNI the sums of 8-bit products saturate"] = None
    return spec, "; ".join(notes) or None


def _inputs(spec: LayerSpec, capabilities: Capabilities) -> Limited:
    if spec.activations is None or capabilities.rounds_inputs:
        return spec, None
    return LayerSpec(spec.weights), "an embedding has no activations to round"


def _format(spec: LayerSpec, capabilities: Capabilities) -> Limited:
    weights = spec.weights
    if weights is None or not weights.format:
        return spec, None
    if weights.format in capabilities.undivided:
        had, why = _divided(weights, capabilities)
        dropped = None if spec.activations is None else "activations stay floats"
        return had, "; ".join(filter(None, (why, dropped)))
    if weights.format not in capabilities.formats:
        integers = replace(weights, format="")
        return replace(spec, weights=integers), f"{weights.format} is for matrices of language models: integers of {weights.bits} bits"
    if spec.activations is None or spec.activations.format in pairs(weights.format, capabilities):
        return spec, None
    if spec.activations.format:
        return LayerSpec(weights), f"nothing multiplies {weights.format} with activations of {spec.activations.format}: they stay floats"
    return LayerSpec(weights), f"no kernel multiplies {weights.format} with integer activations: they stay floats"


def pairs(weights: str, capabilities: Capabilities) -> tuple[str, ...]:
    """The formats of activations that go with weights of the format ``weights``."""
    return tuple(name for name in PAIRS.get(weights, ()) if name in capabilities.activation_formats)


def _float_activations(spec: LayerSpec, capabilities: Capabilities) -> Limited:
    weights, asked = spec.weights, spec.activations
    if weights is None or asked is None or not asked.format or weights.format:
        return spec, None
    eight = DYNAMIC if "dynamic" in capabilities.activations else ActivationSpec(8)
    return replace(spec, activations=eight), f"activations of {asked.format} go with weights of floats: integers of 8 bits"


def _divided(weights: WeightSpec, capabilities: Capabilities) -> tuple[LayerSpec, str]:
    """What llama.cpp stores rows in that are no whole blocks; those that no block divides stay floats."""
    entry = format_entry(weights.format)
    assert entry.layout is not None
    why = f"rows are no multiple of {weights.format}'s {entry.layout.weights}"
    while entry.name in capabilities.undivided and entry.instead:
        entry = format_entry(entry.instead)
    if entry.name in capabilities.undivided:
        return FP32, f"{why}{', nor of 32' if entry.name != weights.format else ''}: it stays in fp32"
    had = WeightSpec.of({**asdict(weights), "format": entry.name})
    return LayerSpec(had), f"{why}: {entry.name} instead"


def _method(spec: LayerSpec, capabilities: Capabilities) -> Limited:
    if spec.weights is None or spec.weights.method in capabilities.methods:
        return spec, None
    method = spec.weights.method
    if capabilities.between_floats:
        had, note = "mse" if spec.weights.bits < 8 else "nearest", _NO_TEXT.format(method=method)
    else:
        had, note = "nearest", f"{method} {METHODS[method].needs_blocks}, as language models alone have them: rounded to the nearest"
    return replace(spec, weights=replace(spec.weights, method=had)), note


def _affine(spec: LayerSpec, capabilities: Capabilities) -> Limited:
    if spec.weights is None or spec.weights.symmetric or capabilities.affine:
        return spec, None
    return replace(spec, weights=replace(spec.weights, symmetric=True)), "affine weights are for language models: symmetric"


def _dynamic(spec: LayerSpec, capabilities: Capabilities) -> Limited:
    if spec.activations is None or not spec.activations.dynamic or "dynamic" in capabilities.activations:
        return spec, None
    static = replace(spec.activations, dynamic=False, group_size=0)
    return replace(spec, activations=static), "a scale for each token is for language models: one for the tensor"


def _granularity(spec: LayerSpec, capabilities: Capabilities) -> Limited:
    weights = spec.weights
    if weights is None or weights.granularity in capabilities.granularities:
        return spec, None
    if weights.format in FLOAT_BLOCKS and weights.format in capabilities.formats:
        return spec, None
    if weights.granularity == "per-block":
        return replace(spec, weights=replace(weights, granularity="per-channel")), "blocks of 128 by 128 are for fp8: one scale per channel"
    if "per-tensor" in capabilities.granularities:
        return spec, None
    return replace(spec, weights=replace(weights, granularity="per-channel")), "decoders have a scale per channel at least"


def _groups(spec: LayerSpec, capabilities: Capabilities) -> Limited:
    if spec.weights is None or spec.weights.granularity != "per-group" or spec.weights.bits <= capabilities.group_bits:
        return spec, None
    sentence = f"groups need {capabilities.group_bits} bits or fewer, so one scale per channel"
    return replace(spec, weights=replace(spec.weights, granularity="per-channel")), sentence


def _width(spec: LayerSpec, capabilities: Capabilities) -> Limited:
    asked = spec.activations
    # Groups of a token are rounded in floats, whatever their width.
    if asked is None or asked.format or asked.group_size or asked.bits in capabilities.activation_bits:
        return spec, None
    bits = min(capabilities.activation_bits, key=lambda width: abs(width - asked.bits))
    sentence = f"the kernels of decoders take activations of {bits} bits"
    return replace(spec, activations=replace(asked, bits=bits)), sentence


def _static(spec: LayerSpec, capabilities: Capabilities) -> Limited:
    weights, activations = spec.weights, spec.activations
    if weights is None or activations is None or activations.dynamic or activations.format or capabilities.static_groups:
        return spec, None
    if weights.symmetric and weights.granularity != "per-group":
        return spec, None
    sentence = "groups and affine grids have no static kernel: activations are rounded as they come"
    return replace(spec, activations=DYNAMIC), sentence


_LIMITS: tuple[Callable[[LayerSpec, Capabilities], Limited], ...] = (
    _inputs, _format, _float_activations, _method, _affine, _dynamic, _granularity, _groups, _width, _static,
)  # fmt: skip
