"""How large ``model.safetensors`` will be under a plan, before there is one. Torch-free.

The numbers are counted as ``artifact`` stores them; the text around them (steps, names, the recipe) is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from engine.events.event import LayerRow
from engine.planning.legality import NO_KERNEL, NOT_FOLDED, possible
from engine.planning.matrix_strategy import possible as possible_matrix
from engine.recipe.spec import LayerSpec, WeightSpec

# Bytes of JSON beyond what the fp32 file has, by measurement: for the file, for a layer on integers or in fp32, for groups.
_FILE_TEXT, _INTEGER_TEXT, _FLOAT_TEXT, _GROUPS_TEXT = 2000, 600, 1000, 100
_MATRIX_TEXT = 200
_WIDEST = 8


def predicted_bytes(fp32_bytes: int, layers: Sequence[LayerRow], specs: Mapping[str, LayerSpec]) -> int:
    """The size when each layer becomes what ``specs`` says by path, or else its ``actual``.

    ``fp32_bytes`` is the size of the folded fp32 model as a file. Layers that are not ``editable`` stay in fp32.
    """
    size = fp32_bytes + _FILE_TEXT
    before: LayerRow | None = None
    for layer in layers:
        if (
            layer.kind.startswith("BatchNorm")
            and not (layer.obstacle or "").startswith((NO_KERNEL, NOT_FOLDED))
            and before
            and not _on_integers(before, specs)
        ):
            # It is not folded after all: its four vectors and a counter, less the bias that folding would give a layer without one.
            biased = before.params > math.prod(before.weight_shape)
            size += (8 if biased else 6) * layer.params + 8 + _FLOAT_TEXT
        before = layer
        if layer.decoder:
            size += _decoder_bytes(layer, specs)
            continue
        spec = possible(specs.get(layer.path, layer.actual), _WIDEST)[0]
        if layer.editable and spec.weights:
            size += _GROUPS_TEXT if spec.weights.granularity == "per-group" else 0
            size += stored_bytes(layer.weight_shape, spec.weights) - 4 * math.prod(layer.weight_shape)
        if layer.editable:
            size += _INTEGER_TEXT if _on_integers(layer, specs) else _FLOAT_TEXT
    return size


def _decoder_bytes(layer: LayerRow, specs: Mapping[str, LayerSpec]) -> int:
    """What a matrix of a decoder adds to the size, as ``numerics.qtensor`` stores it; tied ones add nothing."""
    spec = possible_matrix(specs.get(layer.path, layer.actual), layer.kind, layer.decoder == "block")[0]
    if spec.weights is None or not layer.editable:
        return 0
    out, inputs = layer.weight_shape
    groups = math.ceil(inputs / spec.weights.group_size) if spec.weights.granularity == "per-group" else 1
    zeros = 0 if spec.weights.symmetric else _packed(groups, spec.weights.bits)
    return out * (_packed(inputs, spec.weights.bits) + 2 * groups + zeros) + _MATRIX_TEXT - 4 * out * inputs


def _packed(count: int, bits: int) -> int:
    """Bytes of a row of ``count`` integers."""
    return math.ceil(count * bits / 8)


def _on_integers(layer: LayerRow, specs: Mapping[str, LayerSpec]) -> bool:
    spec = specs.get(layer.path, layer.actual)
    return layer.editable and spec.weights is not None and spec.activations is not None


def stored_bytes(shape: tuple[int, ...], spec: WeightSpec) -> int:
    """Integers, scales and group multipliers of one layer's weights, of shape (out, in, ...)."""
    out, inputs = shape[0], math.prod(shape[1:])
    values = math.ceil(out * inputs / 2) if spec.bits <= 4 else out * inputs
    groups = out * math.ceil(inputs / spec.group_size) if spec.granularity == "per-group" else 0
    return values + 4 * out + groups
