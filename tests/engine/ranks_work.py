"""What the tests have each of several ranks do: each function takes what is given and returns plain values and tensors."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engine.data.images.base import Data, MemorySplit
from engine.events.cancellation import StopToken
from engine.lowering.graph import calibration, conversion, qat
from engine.lowering.graph.fuse import find_pairs, fuse
from engine.lowering.graph.layout import Layout, arrange
from engine.lowering.graph.normalize import functional_to_modules
from engine.lowering.graph.trace import trace
from engine.lowering.modules.blocks import Task, quantize_blocks
from engine.lowering.modules.capture import capture
from engine.machine import ranks
from engine.numerics.scheme import scheme_of
from engine.recipe.recipe import QatPart, Threshold
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec
from engine.tasks.base import forward_of
from engine.tasks.changes import Watch
from engine.tasks.classification import Classification
from engine.tasks.evaluate import evaluate
from engine.training.trainable import TrainingContext


def finished(steps: Any) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


class Net(nn.Module):
    """A normalization, a residual sum inside a convolution, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c2, self.c3 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.f = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.b1(self.c1(x)))
        b = torch.relu(self.c3(F.hardswish(self.c2(a))) + a)
        return self.f(b.mean((2, 3)))


def a_split(count: int, seed: int) -> MemorySplit:
    """Noise whose spread differs from image to image, so that the batches have ranges of their own."""
    g = torch.Generator().manual_seed(seed)
    spread = torch.randint(1, 128, (count, 1, 1, 1), generator=g)
    images = 128 + (torch.rand(count, 3, 8, 8, generator=g) * 2 - 1) * spread
    return MemorySplit(images.clamp(0, 255).to(torch.uint8), torch.randint(0, 5, (count,), generator=g))


DATA = Data("noise", tuple("abcde"), (3, 8, 8), (0.5,) * 3, (0.3,) * 3, a_split(150, 1), a_split(61, 2), a_split(50, 3), False, 1)  # type: ignore[arg-type]
TASK = Classification(DATA)


def network(folded: bool = True) -> tuple[fx.GraphModule, Layout, dict[str, LayerSpec]]:
    """The net with random statistics; its layers in 4 bits by GPTQ, their inputs in 8."""
    torch.manual_seed(4)
    model = Net().eval().requires_grad_(False)
    model.b1.running_mean.normal_(0, 0.3)
    model.b1.running_var.uniform_(0.5, 2)
    example = next(TASK.batches("train", batch=4, limit=4)).args[0]
    gm = trace(model, example).module
    functional_to_modules(gm)
    if folded:
        gm = fuse(gm, example, find_pairs(gm))[0]
    return gm, *laid_out(gm, "minmax")


def laid_out(gm: fx.GraphModule, observer: str) -> tuple[Layout, dict[str, LayerSpec]]:
    spec = LayerSpec(WeightSpec(4, method="gptq"), ActivationSpec(8, observer=observer))
    paths = [str(n.target) for n in gm.graph.nodes if n.op == "call_module"]
    specs = {path: spec for path in paths if isinstance(gm.get_submodule(path), nn.Conv2d | nn.Linear)}
    return arrange(gm, specs), specs


def calibrated(given: tuple[int, int]) -> dict[str, Any]:
    """The grids of every kind of observer and the histograms, from ``items`` images in batches of ``batch``."""
    items, batch = given
    gm = network()[0]
    found: dict[str, Any] = {}
    for name in ("minmax", "moving-average", "percentile", "histogram-mse", "entropy"):
        steps = calibration.calibrate(gm, laid_out(gm, name)[0], TASK, items, batch, "cpu", StopToken(), attended=True)
        found[name] = {key: asdict(grid) for key, grid in finished(steps).items()}
    return found


def rounded(given: tuple[int, int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Codes and scales of the net's layers by GPTQ."""
    items, batch = given
    gm, layout, specs = network()
    inputs = conversion.watched(gm, layout, specs, items)
    for moments in inputs.values():
        # Fewer than there are: places are drawn.
        moments.rows = 900
    finished(calibration.calibrate(gm, layout, TASK, items, batch, "cpu", StopToken(), readers=inputs))
    conversion.merge(inputs)
    found = finished(conversion.round_layers(gm, layout, specs, inputs, StopToken()))
    return {node: (weight.codes, weight.scale) for node, weight in found.weights.items()}


def judged(batch: int) -> dict[str, Any]:
    """The net, and one that answers otherwise, on the test split."""
    gm = network()[0]
    other = copy.deepcopy(gm)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    watch = Watch(TASK)
    steps = evaluate(
        TASK, {"other": forward_of(other)}, forward_of(gm), "test", batch=batch, stop=StopToken(), watch={"other": watch}
    )  # fmt: skip
    found = {name: asdict(result) for name, result in finished(steps).items()}
    changes = watch.changes()
    return {**found, "changes": None if changes is None else asdict(changes)}


def trained(given: dict[str, Any]) -> dict[str, Any]:
    """Two epochs of QAT: losses, values and parameters."""
    gm, layout, specs = network(given["folded"])
    grids = finished(calibration.calibrate(gm, layout, TASK, 64, 32, "cpu", StopToken()))
    weights = conversion.round_weights(gm, layout, {path: replace(spec, weights=WeightSpec(4)) for path, spec in specs.items()})
    start = qat.Start(gm, layout, grids, weights, copy.deepcopy(gm))
    part = QatPart(epochs=2, batch=given["batch"], lr=given.get("lr", 0.01), freeze_bn=0.5)
    context = TrainingContext(StopToken(), "qat", "cpu", given.get("checkpoint"), "a fingerprint")
    found = finished(qat.train(start, TASK, part, Threshold.parse("drop:0.01"), 0, context))
    return {
        "losses": found.fitted.losses, "values": found.fitted.values, "state": found.graph.state_dict(),
        "steps": {key: grid.scale for key, grid in found.grids.items()},
    }  # fmt: skip


def a_decoder(given: dict[str, Any]) -> dict[str, Any]:
    """A small decoder of which each block is rounded on the text of ``count`` batches; and what its layers read."""
    import tiny_decoders

    model = tiny_decoders.decoder(given["family"])
    named = tiny_decoders.blocks_of(model, given["family"])
    texts = tiny_decoders.texts(given["count"])
    whole = ranks.is_first() and given["method"] == "autoround"
    turns = [turn for turn in range(len(texts)) if turn == 0 or whole or ranks.mine(turn)]
    batches = capture(lambda ids: model(ids, use_cache=False), [block for _, block in named], [texts[turn] for turn in turns])
    for turn, batch in zip(turns, batches, strict=True):
        batch.turn, batch.counts = turn, ranks.mine(turn)
    task = Task(scheme_of(WeightSpec(4, granularity="per-group", group_size=16)), given["method"])
    packed = finished(quantize_blocks(named, batches, lambda name: task, StopToken(), given.get("checkpoints")))
    return {
        "weights": {name: (weight.codes, weight.scale) for name, weight in packed.items()},
        "state": {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()},
    }  # fmt: skip


def several(given: dict[str, Any]) -> dict[str, Any]:
    """Each work of ``given`` by its name, one after the other: processes take long to start."""
    return {name: globals()[name.partition(" ")[0]](one) for name, one in given.items()}
