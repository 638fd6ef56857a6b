"""Small networks that between them use what an exporter meets, and the way from one to a quantized model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.algorithms.channelwise import quantize_weight
from engine.export.base import ExportContext
from engine.kernels.probe import probe
from engine.kernels.simulate import Simulate
from engine.lowering.graph.convert import convert, unit_parameters
from engine.lowering.graph.fuse import find_pairs, fuse
from engine.lowering.graph.layout import arrange
from engine.lowering.graph.normalize import functional_to_modules
from engine.lowering.graph.runtime import QuantizedModel
from engine.lowering.graph.trace import trace
from engine.numerics.qparams import affine
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec
from engine.tasks.base import Batch


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn(self.stem(x))))
        x = F.relu(self.b(F.relu(self.a(x))) + x)
        y = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1))


class Mobile(nn.Module):
    """Depthwise and grouped convolutions, relu6, hardswish, squeeze and excitation, shuffled channels, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 16, 1)
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        x = F.relu6(self.depth(x))
        x = F.silu(self.point(x))
        x = x * F.hardsigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        n, c, h, w = x.size()
        y = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = self.grouped(y)
        y = torch.cat([y, x], 1)
        return self.fc(F.avg_pool2d(y, (h, w)).flatten(1))


class Dense(nn.Module):
    """Concatenations that grow, with normalizations that no convolution takes in; sigmoid gates and tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.first, self.second = nn.BatchNorm2d(8), nn.BatchNorm2d(16)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.gate = nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([x, self.a(F.relu(self.first(x)))], 1)
        x = torch.tanh(self.b(F.relu(self.second(x))))
        x = self.b(x * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Attention(nn.Module):
    """Patches as tokens, a class token, a whole attention module, normalization, gelu."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x[:, 0])


class Sequence1d(nn.Module):
    """A convolution over rows, chunks, softmax, a normalization that nothing folds, sizes that do not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Conv1d(48, 8, 3, padding=1)
        self.bn = nn.BatchNorm1d(8)
        self.fc = nn.Linear(8 * 7, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.row(x.reshape(x.shape[0], 48, 16))
        a, b = torch.chunk(F.relu(y), 2, 1)
        y = self.bn(torch.cat([torch.softmax(a, 2), b - a.amax(2, keepdim=True)], 1))
        return self.fc(F.adaptive_avg_pool2d(y.unsqueeze(1), (8, 7)).flatten(1))


NETS: tuple[Callable[[], nn.Module], ...] = (Residual, Mobile, Dense, Attention, Sequence1d)
W8, W4, GROUPS_OF_8 = WeightSpec(8), WeightSpec(4), WeightSpec(3, "per-group", 8)
GROUPS = WeightSpec(4, "per-group", 16)


def quantized(
    make: Callable[[], nn.Module],
    weights: WeightSpec = W8,
    activations: int | None = 8,
    seed: int = 0,
    images: Tensor | None = None,
    symmetric: bool = False,
) -> ExportContext:
    """The network with every layer alike, calibrated on ``images``, which are else random ones (N, 3, 16, 16). Activations have no
    more bits than this processor multiplies without saturating, as in a run: other runtimes saturate there too."""
    torch.manual_seed(seed)
    model = make().eval().requires_grad_(False)
    images = torch.randn(8, 3, 16, 16) if images is None else images
    graph = trace(model, images[:2]).module
    functional_to_modules(graph)
    graph = fuse(graph, images[:2], find_pairs(graph))[0]
    wanted = LayerSpec(weights, ActivationSpec(min(activations, probe().activation_bits), symmetric) if activations else None)
    layers = [str(n.target) for n in graph.graph.nodes if n.op == "call_module" and _is_layer(graph.get_submodule(str(n.target)))]
    specs = dict.fromkeys(layers, wanted)
    layout = arrange(graph, specs)
    grids = _grids(graph, layout, images)
    rounded = {unit.layer: quantize_weight(unit_parameters(graph, unit)[0], weights) for unit in layout.units}
    if activations is None:
        rounded = {
            n.name: quantize_weight(graph.get_submodule(str(n.target)).weight, weights)  # type: ignore[arg-type]
            for n in graph.graph.nodes
            if str(n.target) in specs
        }
    whole: dict[str, nn.Module] = dict(model.named_modules())
    executor = QuantizedModel(convert(graph, layout, grids, rounded), [Simulate()], whole)
    return ExportContext(executor, Batch((images,), count=len(images)), whole, "model: net\n", "any", "net", threads=1)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)


def _grids(graph: Any, layout: Any, images: Tensor) -> dict[str, Any]:
    seen: dict[str, Tensor] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                seen[n.name] = value
            return value

    Watch(graph).run(images)
    return {
        c.name: affine(
            min(seen[m].min().item() for m in c.members), max(seen[m].max().item() for m in c.members), c.spec.bits, c.spec.symmetric
        )
        for c in layout.classes
    }
