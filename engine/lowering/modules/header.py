"""The JSON of a decoder's file: configuration, and what each matrix is besides its tensors. Nothing of it names code."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_args

from engine.lowering.modules.quantized import QuantizedDecoder
from engine.models.experts import has_separate_experts
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix
from engine.recipe.cache_spec import CACHE_FORMATS, CACHE_GRANULARITIES, CacheSpec
from engine.recipe.number_formats import ACTIVATION_FORMATS
from engine.recipe.spec import ActivationSpec, Observer

KIND, SCHEMA = "decoder", 1
# What a configuration of transformers says of places and kernels instead of the architecture.
_NOT_KEPT = ("_name_or_path", "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation",
             "_experts_implementation", "_experts_implementation_internal", "quantization_config", "auto_map")  # fmt: skip


def header(decoder: QuantizedDecoder, recipe_yaml: str, isa: str) -> dict[str, Any]:
    """Plain JSON of schema 1."""
    matrices = {path: about(matrix) for path, matrix in decoder.matrices.items()}
    return header_of(decoder.twin, matrices, recipe_yaml, isa, None if decoder.cache is None else decoder.cache.spec)


def header_of(model: Any, matrices: Mapping[str, Any], recipe_yaml: str, isa: str, cache: CacheSpec | None = None) -> dict[str, Any]:
    """The same from what is known of each matrix (``about``); of ``model`` no weights are read."""
    return {
        "schema": SCHEMA, "kind": KIND, "config": config_dict(model.config), "recipe": recipe_yaml, "isa": isa, "matrices": dict(matrices),
        **({"cache": asdict(cache)} if cache is not None else {}), **({"experts": "separate"} if has_separate_experts(model) else {}),
    }  # fmt: skip


def config_dict(config: Any) -> dict[str, Any]:
    """A transformers configuration as JSON, whole: what later versions take as default does not change it."""
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in found.items() if key not in _NOT_KEPT}


def about(matrix: QuantizedMatrix) -> dict[str, Any]:
    """What the header says of one matrix."""
    return {
        **matrix.weight.meta(), "tied": matrix.tied,
        "activations": matrix.activations.fields() if matrix.activations else None, "grid": asdict(matrix.grid) if matrix.grid else None,
    }  # fmt: skip


def matrix(path: str, told: Mapping[str, Any], weight: QTensor) -> QuantizedMatrix:
    """The inverse for one matrix. Raises ValueError, KeyError or TypeError for what no run writes."""
    tied = told["tied"]
    if tied is not None and (not isinstance(tied, str) or tied == path):
        raise ValueError(f"{path} is tied to {tied!r}")
    return QuantizedMatrix(weight, activations_of(path, told), _grid(path, told["grid"]), tied)


def cache(about: Any) -> CacheSpec:
    """The inverse for the cache. Raises ValueError, KeyError or TypeError for what no run writes."""
    spec = CacheSpec(**about)
    if spec.format not in CACHE_FORMATS or spec.granularity not in CACHE_GRANULARITIES or spec.group_size not in (16, 32, 64, 128):
        raise ValueError(f"the cache is {spec.format!r} {spec.granularity!r} {spec.group_size!r}")
    return spec


def activations_of(path: str, told: Mapping[str, Any]) -> ActivationSpec | None:
    """What the inputs of the matrix ``path`` become. Raises ValueError or TypeError for what no run writes."""
    about = told["activations"]
    if about is None:
        return None
    spec = ActivationSpec(**about)
    if type(spec.bits) is not int or not 2 <= spec.bits <= 8 or spec.observer not in get_args(Observer):
        raise ValueError(f"activations of {path} are {spec.bits!r} bits by {spec.observer!r}")
    if type(spec.dynamic) is not bool or type(spec.symmetric) is not bool:
        raise ValueError(f"activations of {path} are neither dynamic nor static")
    known = spec.format in ("", *ACTIVATION_FORMATS) and type(spec.group_size) is int and 0 <= spec.group_size <= 128
    if not known or (spec.group_size and not spec.dynamic):
        raise ValueError(f"activations of {path} are {spec.format!r} in groups of {spec.group_size!r}")
    return spec


def _grid(path: str, about: Any) -> QParams | None:
    if about is None:
        return None
    grid = QParams(float(about["scale"]), int(about["zero_point"]), int(about["qmax"]))
    if not (math.isfinite(grid.scale) and grid.scale > 0 and 0 <= grid.zero_point <= grid.qmax <= 255):
        raise ValueError(f"the grid of {path} has step {grid.scale}, zero point {grid.zero_point} and {grid.qmax} levels")
    return grid
