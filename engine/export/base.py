"""What a format is given to write, and what it gives back to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from engine.lowering.graph.runtime import QuantizedModel


@dataclass(frozen=True)
class Given:
    """``model`` is the model that was measured. ``images`` are training images (N, C, H, W), N at least 2, normalized.
    ``whole`` maps module paths to the fp32 modules, for those that stayed whole. ``recipe`` is YAML, ``isa`` torch's word."""

    model: QuantizedModel
    images: Tensor
    whole: Mapping[str, nn.Module] = field(default_factory=dict)
    recipe: str = ""
    isa: str = ""
    name: str = "model"


@dataclass(frozen=True)
class Runner:
    """A loaded file. ``hold`` turns float32 images (N, C, H, W) into the runtime's own layout, ``run`` gives float32 logits
    (N, classes), as a tensor or an array; ``label`` names the runtime with its version, ``kernel`` what it computes with."""

    label: str
    hold: Callable[[Tensor], Any]
    run: Callable[[Any], Any]
    kernel: str = ""
