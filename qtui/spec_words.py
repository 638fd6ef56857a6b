"""The one spelling of what a layer becomes: ``w4 g32 · a8``. Pure functions.

Weights: bits, then what is not the usual: ``g32`` for groups of 32, ``tensor`` for one scale, ``affine``, the method. Activations:
bits, then ``sym`` or ``dynamic``. One scale for each channel and affine activations are the usual and are not said.
"""

from __future__ import annotations

import re
from typing import Any

from engine.recipe.number_formats import format_entry
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec

FP32 = "fp32"
JOINED = " · "


def spelled(spec: LayerSpec) -> str:
    """``w4 g32 mse · a8``; ``w4 · fp32`` where only weights are integers, ``fp32`` where nothing is."""
    if spec.weights is None:
        return FP32
    return f"{weights(spec.weights)}{JOINED}{activations(spec.activations) if spec.activations else FP32}"


def weights(found: WeightSpec) -> str:
    """``w4 g32 affine gptq``, ``nvfp4 gptq``."""
    method = "" if found.method == "nearest" else found.method
    return " ".join(filter(None, (width(found), scheme(found), method)))


def width(found: WeightSpec) -> str:
    """``w4``, or the name of a format that is no integer."""
    return found.format or f"w{found.bits}"


def scheme(found: WeightSpec) -> str:
    """How scales are shared, without what is usual: ``g32``, ``tensor affine``, empty for one a channel."""
    if found.format and format_entry(found.format).block:
        return ""
    shared = {"per-group": f"g{found.group_size}", "per-tensor": "tensor", "per-block": "blocks"}.get(found.granularity, "")
    return " ".join(filter(None, (shared, "" if found.symmetric else "affine")))


def activations(found: ActivationSpec) -> str:
    """``a8``, ``a7 sym``, ``a8 dynamic``."""
    if found.format or found.group_size:
        own = found.format and format_entry(found.format).block == found.group_size
        group = f" g{found.group_size}" if found.group_size and not own else ""
        return f"{found.format or f'a{found.bits}'}{group}{' dynamic' if found.dynamic else ''}"
    return f"a{found.bits}{' dynamic' if found.dynamic else ' sym' if found.symmetric else ''}"


def respelled(said: Any) -> str:
    """What a report says of a layer (``w4 per-group 32, a8 per-tensor``) in this spelling."""
    weights_part, comma, rest = str(said or "").partition(", ")
    shared = re.sub(r" per-channel\b", "", weights_part)
    shared = re.sub(r" (?:per-)?group (\d+)", r" g\1", shared).replace(" per-tensor", " tensor").replace(" per-block", " blocks")
    if not comma:
        return shared
    rest = re.sub(r" per-token (\d+)", r" g\1", rest)
    read = rest.replace("fp32 activations", FP32).replace(" per-tensor", "").replace(" per-token", "").replace(" symmetric", " sym")
    return f"{shared}{JOINED}{read}"
