"""How large ``model.safetensors`` will be under a plan, before there is one. Torch-free.

The numbers are counted as they are stored; the text around them (steps, names, the recipe) is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from engine.events.rows import LayerRow
from engine.planning.legality import NO_KERNEL, NOT_FOLDED, legalize
from engine.recipe.capabilities import Role
from engine.recipe.number_formats import format_entry
from engine.recipe.spec import BLOCK, LayerSpec, WeightSpec

_FILE_TEXT = 2000
_WIDEST = 8


def stored_bytes(shape: tuple[int, ...], spec: WeightSpec) -> int:
    """Integers, scales and group multipliers of one layer's weights, of shape (out, in, ...)."""
    out, inputs = shape[0], math.prod(shape[1:])
    groups = out * math.ceil(inputs / spec.group_size) if spec.granularity == "per-group" else 0
    return _packed(out * inputs, spec.bits) + 4 * out + groups


def packed_bytes(shape: tuple[int, ...], spec: WeightSpec) -> int:
    """A matrix (out, in) as ``numerics.qtensor`` packs it, row by row, with float16 scales and packed zero points; of GGUF's formats whole
    blocks."""
    out, inputs = shape
    if layout := spec.format and format_entry(spec.format).layout:
        return out * math.ceil(inputs / layout.weights) * layout.size
    groups = math.ceil(inputs / spec.group_size) if spec.granularity == "per-group" else 1
    zeros = 0 if spec.symmetric else _packed(groups, spec.bits)
    scale = 2 if not spec.format or format_entry(spec.format).scale == "float16" else 1
    if spec.granularity == "per-block":
        scales = math.ceil(out / BLOCK) * math.ceil(inputs / BLOCK)
    else:
        scales = 1 if spec.format and spec.granularity == "per-tensor" else out * groups
    return out * (_packed(inputs, spec.bits) + zeros) + scale * scales


def _packed(count: int, bits: int) -> int:
    """Bytes of ``count`` integers side by side."""
    return math.ceil(count * bits / 8)


@dataclass(frozen=True)
class _Form:
    """How layers of a role lie in the file: the bytes of quantized weights, and those of JSON beyond what the fp32 file has, by
    measurement: of a layer on integers, of one computed in floats on integer weights, of one in fp32, and for groups."""

    weights: Callable[[tuple[int, ...], WeightSpec], int]
    integer_text: int
    stored_text: int
    float_text: int
    groups_text: int


_GRAPH = _Form(stored_bytes, 600, 1000, 1000, 100)
_MATRIX = _Form(packed_bytes, 200, 200, 0, 0)
_FORMS: Mapping[Role, _Form] = {
    "none": _GRAPH, "convolution": _GRAPH, "linear": _GRAPH, "block": _MATRIX, "outside": _MATRIX, "embedding": _MATRIX,
}  # fmt: skip


def predicted_bytes(fp32_bytes: int, layers: Sequence[LayerRow], specs: Mapping[str, LayerSpec]) -> int:
    """The size when each layer becomes what ``specs`` says by path, or else its ``actual``.

    ``fp32_bytes`` is the size of the folded fp32 model as a file. Layers that are not ``editable`` stay in fp32, or are stored with
    the layer whose matrix they share.
    """
    size = fp32_bytes + _FILE_TEXT
    before: LayerRow | None = None
    for layer in layers:
        if before and _unfolded(layer) and not _on_integers(before, specs):
            # It is not folded after all: its four vectors and a counter, less the bias that folding would give a layer without one.
            biased = before.params > math.prod(before.weight_shape)
            size += (8 if biased else 6) * layer.params + 8 + _GRAPH.float_text
        before = layer
        if layer.editable:
            size += _change(layer, specs.get(layer.path, layer.actual))
    return size


def weight_bytes(layer: LayerRow, weights: WeightSpec | None) -> int:
    """Bytes of one layer's weights as they lie in the file, scales included; None is fp32. Of a layer whose matrix another one has, 0."""
    if layer.tied is not None or not layer.weight_shape:
        return 0
    if weights is None:
        return 4 * math.prod(layer.weight_shape)
    return _FORMS[layer.capabilities.role].weights(layer.weight_shape, weights)


def layer_bytes(layer: LayerRow, spec: LayerSpec) -> int:
    """Bytes that one layer adds to the file of the fp32 model when it becomes ``spec``; negative where the file shrinks."""
    return _change(layer, spec) if layer.editable else 0


def _change(layer: LayerRow, asked: LayerSpec) -> int:
    """Bytes that a layer adds to those it has in fp32."""
    form, spec = _FORMS[layer.capabilities.role], legalize(asked, layer.capabilities, _WIDEST)[0]
    if spec.weights is None:
        return form.float_text
    text = form.integer_text if spec.activations else form.stored_text
    groups = form.groups_text if spec.weights.granularity == "per-group" else 0
    return text + groups + form.weights(layer.weight_shape, spec.weights) - 4 * math.prod(layer.weight_shape)


def _unfolded(layer: LayerRow) -> bool:
    """Whether it is a normalization that the layer before it takes in where that one is on integers."""
    return layer.kind.startswith("BatchNorm") and not (layer.obstacle or "").startswith((NO_KERNEL, NOT_FOLDED))


def _on_integers(layer: LayerRow, specs: Mapping[str, LayerSpec]) -> bool:
    spec = specs.get(layer.path, layer.actual)
    return layer.editable and spec.weights is not None and spec.activations is not None
