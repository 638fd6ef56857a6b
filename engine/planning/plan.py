"""What each layer of a model is to become. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from engine.events.rows import LayerRow
from engine.recipe.spec import LayerSpec


@dataclass(frozen=True)
class Plan:
    """One row a module that holds parameters. ``requested`` is what rule, preset or proposal asks, ``why`` a sentence,
    ``rule`` names where the request comes from, ``node`` is the first node that calls the module."""

    layers: tuple[LayerRow, ...]
    warnings: tuple[str, ...] = ()

    def specs(self) -> dict[str, LayerSpec]:
        return {layer.path: layer.actual for layer in self.layers}
