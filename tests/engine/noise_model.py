"""What noise a network makes of the noise of its layers, by adding that much to the float network: no integers are in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from engine.lowering.graph.fuse import find_pairs, fuse
from engine.lowering.graph.kinds import kind
from engine.lowering.graph.layout import arrange
from engine.lowering.graph.normalize import chunks_to_slices, functional_to_modules
from engine.lowering.graph.trace import trace
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec


class _Noisy(fx.Interpreter):
    """Noise on each unit's output, ``own`` dB (by module path) under it, and on each other value that is rounded to integers
    that of a grid of 255 steps from its least to its greatest.

    A rounded weight is wrong alike in all places of an image, so a unit's noise is one number a channel: no average removes it.
    """

    def __init__(self, graph: fx.GraphModule, own: Mapping[str, float], seed: int) -> None:
        super().__init__(graph)
        full = LayerSpec(WeightSpec(), ActivationSpec())
        layout = arrange(graph, {str(n.target): full for n in graph.graph.nodes if kind(n) in ("conv", "linear")})
        self._own = {unit.output: own[unit.path] for unit in layout.units if unit.path in own}
        self._rounded = {source for values in layout.classes for source in values.sources} - set(self._own)
        self._generator = torch.Generator().manual_seed(seed)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._own:
            shape = torch.Size((1, value.shape[1], 1, 1)) if value.dim() == 4 else value.shape
            size = value.square().mean().sqrt() * 10 ** (-self._own[n.name] / 20)
        elif n.name in self._rounded:
            shape, size = value.shape, (value.amax() - value.amin()) / 255 / math.sqrt(12)
        else:
            return value
        return value + torch.randn(shape, generator=self._generator) * size


def expected_sqnr(model: nn.Module, images: Tensor, own: Mapping[str, float], draws: int = 4) -> float:
    """SQNR in dB of the logits for ``images`` (N, C, H, W) when each layer has noise of its ``own`` SQNR (by path), as
    the mean power of ``draws``."""
    graph = trace(model.eval(), images[:2]).module
    functional_to_modules(graph)
    chunks_to_slices(graph)
    graph, _, _ = fuse(graph, images[:2], find_pairs(graph))
    with torch.no_grad():
        exact = graph(images)
        noise = [(_Noisy(graph, own, seed).run(images) - exact).square().mean().item() for seed in range(draws)]
    return 10 * math.log10(exact.square().mean().item() / (sum(noise) / draws))
