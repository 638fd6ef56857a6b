"""What a format is given to write, and what it gives back to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from engine.lowering.graph.runtime import QuantizedModel


@dataclass(frozen=True)
class Given:
    """``model`` is the model that was measured. ``images`` are training images (N, C, H, W), N at least 2, normalized; or the program's
    inputs of as many training items, in order.
    ``whole`` maps module paths to the fp32 modules, for those that stayed whole. ``recipe`` is YAML, ``isa`` torch's word."""

    model: QuantizedModel
    images: Tensor | tuple[Tensor, ...]
    whole: Mapping[str, nn.Module] = field(default_factory=dict)
    recipe: str = ""
    isa: str = ""
    name: str = "model"

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The program's inputs in order."""
        return self.images if isinstance(self.images, tuple) else (self.images,)

    @property
    def count(self) -> int:
        """How many items ``inputs`` hold."""
        return next((len(x) for x, free in zip(self.inputs, self._free(), strict=True) if free), 1)

    def _free(self) -> tuple[bool, ...]:
        """For each input, whether its first size is the number of items."""
        call = self.model.program.call
        return (True,) * len(self.inputs) if call is None else tuple(bool(i.shape) and i.shape[0] is None for i in call.inputs)

    def items(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """The inputs of the items from ``start`` to ``stop``."""
        return tuple(x[start:stop] if free else x for x, free in zip(self.inputs, self._free(), strict=True))


@dataclass(frozen=True)
class Runner:
    """A loaded file. ``hold`` turns the program's inputs in order into the runtime's own layout, ``run`` gives its results: a tensor or
    an array, or a tuple or list of them; ``label`` names the runtime with its version, ``kernel`` what it computes with."""

    label: str
    hold: Callable[..., Any]
    run: Callable[[Any], Any]
    kernel: str = ""
