"""Padding that no kernel has, and transposed convolutions, run on integers; and what they compute is what torch computes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import nets
import pytest
import torch
import torch.nn.functional as F
from given_net import Net
from torch import Tensor, fx, nn

from engine.algorithms.channelwise import quantize_weight
from engine.kernels.choose import kernels_for
from engine.kernels.probe import probe
from engine.kernels.simulate import Simulate
from engine.lowering.graph.convert import convert, unit_parameters
from engine.lowering.graph.fp32_forms import fp32_forms, fp32_size
from engine.lowering.graph.fuse import find_pairs, fuse
from engine.lowering.graph.kinds import kind
from engine.lowering.graph.layers import layers
from engine.lowering.graph.layout import arrange
from engine.lowering.graph.runtime import QuantizedModel
from engine.lowering.graph.simplify import simplify
from engine.lowering.graph.subpixel import transposed_to_convolutions
from engine.lowering.graph.trace import trace
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec

# Kernel, stride, padding, output padding, dilation, groups.
GEOMETRIES = [
    given
    for given in itertools.product((1, 2, 3, 4, (3, 2)), (1, 2, 3), (0, 1, 2), (0, 1), (1, 2), (1, 2))
    if given[3] < max(given[1], given[4])
]
STRIDED = [
    (3, (1, 2), 1, 0, 1, 1),
    ((3, 4), (2, 1), (1, 2), (1, 0), (1, 2), 2),
    ((1, 5), (3, 2), 0, (2, 1), (2, 3), 1),
    (2, (2, 3), 1, 0, 1, 2),
]


def normalized(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    norm.running_mean = torch.randn(channels)
    norm.running_var = torch.rand(channels) + 0.5
    norm.weight.data.uniform_(0.5, 2)
    norm.bias.data.normal_()
    return norm


def test_a_transposed_convolution_of_any_geometry_is_an_ordinary_one_behind_which_its_phases_are_put_in_place() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 7, dtype=torch.float64)
    tried = 0
    for given in [*GEOMETRIES, *STRIDED]:
        layer = nn.ConvTranspose2d(4, 6, *given[:4], given[5], True, given[4])
        model = Net(lambda s, x: s.n(s.t(x)).relu(), t=layer, n=normalized(6)).eval()
        try:
            wanted = copy.deepcopy(model).double()(x)
        except RuntimeError:
            continue  # Nothing is left of so small an image.
        graph = trace(model, x[:2].float()).module
        assert transposed_to_convolutions(graph) == ("t",), given
        assert [kind(node) for node in graph.graph.nodes][1:4] == ["conv", "bn", "relu"], given
        assert torch.allclose(graph(x.float()).double(), wanted, atol=1e-4), given
        _shapes_hold(graph, x.float())
        (form, *_) = fp32_forms(fuse(graph, x.float(), find_pairs(graph))[0]).values()
        assert torch.allclose(form(x.float()).double(), wanted, atol=1e-4), given
        (restored,) = [module for module in form.modules() if isinstance(module, nn.ConvTranspose2d)]
        assert restored.weight.shape == layer.weight.shape
        tried += 1
    assert tried > 150


@pytest.mark.parametrize("rank", [1, 3])
def test_lines_and_volumes_are_transposed_as_images_are(rank: int) -> None:
    torch.manual_seed(0)
    kind_of, norm_of = (nn.ConvTranspose1d, nn.BatchNorm1d) if rank == 1 else (nn.ConvTranspose3d, nn.BatchNorm3d)
    x = torch.randn(3, 4, 7) if rank == 1 else torch.randn(3, 4, 3, 4, 5)
    lines = [(k, s, p, o, d, g) for k, s, p, o, d, g in GEOMETRIES if isinstance(k, int)]
    volumes = [
        (3, (1, 2, 2), 1, 0, 1, 1),
        ((1, 2, 3), (2, 3, 1), (0, 0, 1), (1, 2, 0), (1, 1, 2), 2),
        (2, 2, 0, 0, 1, 1),
        (3, 1, 1, 0, 2, 2),
    ]
    for given in lines if rank == 1 else volumes:
        norm: Any = norm_of(6)
        norm.running_mean, norm.running_var = torch.randn(6), torch.rand(6) + 0.5
        model = Net(lambda s, x: s.n(s.t(x)).relu(), t=kind_of(4, 6, *given[:4], given[5], True, given[4]), n=norm).eval()
        try:
            wanted = copy.deepcopy(model).double()(x.double())
        except RuntimeError:
            continue  # Nothing is left of so short a line.
        graph = trace(model, x[:2]).module
        assert transposed_to_convolutions(graph) == ("t",), given
        assert torch.allclose(graph(x).double(), wanted, atol=1e-4), given
        _shapes_hold(graph, x)
        (form, *_) = fp32_forms(fuse(graph, x, find_pairs(graph))[0]).values()
        assert torch.allclose(form(x).double(), wanted, atol=1e-4), given


def _shapes_hold(graph: fx.GraphModule, x: Tensor) -> None:
    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if "shape" in n.meta and n.op != "get_attr":
                assert all(size in (None, own) for size, own in zip(n.meta["shape"], value.shape, strict=True)), n
            return value

    Watch(graph).run(x)


def test_the_baseline_has_the_models_own_weights_again() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2), nn.ReLU()).eval()
    x = torch.randn(2, 4, 5, 5)
    graph = simplify(trace(model, x).module, x)
    for form in fp32_forms(graph).values():
        (restored,) = [module for module in form.modules() if isinstance(module, nn.ConvTranspose2d)]
        assert torch.equal(restored.weight, model[0].weight) and torch.equal(restored.bias, model[0].bias)
    assert fp32_size(graph) == fp32_size(trace(model, x).module)
    assert [layer.kind for layer in layers(graph)] == ["ConvTranspose2d"]


LEFT: dict[str, Callable[[], nn.Module]] = {
    "one that is called twice": lambda: Net(lambda s, x: s.t(s.t(x)), t=nn.ConvTranspose2d(3, 3, 2, 2)),
    "a given size": lambda: Net(lambda s, x: s.t(x, output_size=(16, 15)), t=nn.ConvTranspose2d(3, 4, 3, 2, 1)),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_has_no_such_form_stays_as_it_is(name: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(LEFT[name]()).eval(), torch.randn(2, 3, 8, 8)
    graph = simplify(trace(model, x).module, x)
    assert any(kind(node) == "conv_transpose" for node in graph.graph.nodes) and torch.allclose(graph(x), model(x), atol=1e-5)


def conv(outputs: int = 8, kernel: int | tuple[int, int] = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(8, outputs, kernel, padding=more.pop("padding", 1), **more)


def weight() -> nn.Parameter:
    return nn.Parameter(torch.randn(8, 3, 3, 3) * 0.1)


def bias() -> nn.Parameter:
    return nn.Parameter(torch.randn(6) * 0.1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "transposed by two": lambda: nn.ConvTranspose2d(8, 6, 2, 2),
    "transposed with margins": lambda: nn.ConvTranspose2d(8, 6, 4, 2, 1),
    "transposed, odd": lambda: nn.ConvTranspose2d(8, 6, 3, 2, 1, 1),
    "transposed by one": lambda: nn.ConvTranspose2d(8, 6, 3, 1, 1),
    "transposed by unequal strides": lambda: nn.ConvTranspose2d(8, 6, (3, 4), (2, 1), (1, 2), (1, 0)),
    "transposed with holes": lambda: nn.ConvTranspose2d(8, 6, 3, 3, 1, 2, dilation=2),
    "transposed in groups": lambda: nn.ConvTranspose2d(8, 6, 4, 2, 1, groups=2),
    "the function that transposes": lambda: Net(lambda s, x: F.conv_transpose2d(x, s.w, s.b, 2, 1, 1, 2), w=weight(), b=bias()),
    "transposed and normalized": lambda: nn.Sequential(nn.ConvTranspose2d(8, 6, 4, 2, 1), normalized(6), nn.ReLU6()),
    "reflected": lambda: conv(padding_mode="reflect", padding=(1, 2)),
    "replicated": lambda: conv(padding_mode="replicate"),
    "circular": lambda: conv(padding_mode="circular", padding=(2, 1)),
    "same, wider on one side": lambda: conv(kernel=(4, 3), padding="same", dilation=(1, 2)),
    "same, reflected": lambda: conv(kernel=2, padding="same", padding_mode="reflect"),
    "a module that pads": lambda: nn.Sequential(nn.ReflectionPad2d((1, 0, 2, 1)), conv(padding=0)),
    "a module of zeros": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), conv(padding=0, stride=2)),
    "a function that pads": lambda: Net(lambda s, x: s.c(F.pad(x, (1, 1, 1, 1), mode="replicate")), c=conv(padding=0)),
    "shuffled pixels": lambda: nn.Sequential(nn.PixelShuffle(2), nn.Conv2d(2, 6, 3)),
    "shuffled back": lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(32, 6, 3)),
    "shuffled channels": lambda: nn.Sequential(nn.ChannelShuffle(2), conv()),
}


def converted(middle: nn.Module) -> tuple[fx.GraphModule, QuantizedModel, Any, Any, Tensor]:
    first, last = nn.Conv2d(3, 8, 3, padding=1), nn.LazyConv2d(5, 1)
    model = nn.Sequential(first, nn.ReLU(), middle, last)
    x = torch.randn(4, 3, 12, 10)
    model(x)
    model.eval().requires_grad_(False)
    graph = simplify(trace(model, x[:2]).module, x)
    graph = fuse(graph, x, find_pairs(graph))[0]
    specs = {
        str(node.target): LayerSpec(WeightSpec(8), ActivationSpec(probe().activation_bits))
        for node in graph.graph.nodes
        if kind(node) in ("conv", "linear")
    }
    layout = arrange(graph, specs)
    grids = nets._grids(graph, layout, x)
    weights = {unit.layer: quantize_weight(unit_parameters(graph, unit)[0], WeightSpec(8)) for unit in layout.units}
    program = convert(graph, layout, grids, weights)
    return graph, QuantizedModel(program, kernels_for(probe())), grids, model, x


@pytest.mark.parametrize("name", NETWORKS)
def test_integers_run_from_the_first_layer_to_the_last_and_give_what_torch_gives(name: str) -> None:
    torch.manual_seed(0)
    graph, quantized, _, model, x = converted(NETWORKS[name]())
    layers_of_graph = sum(kind(node) in ("conv", "conv_transpose", "linear") for node in graph.graph.nodes)
    assert len(quantized.placement) == layers_of_graph and not quantized.simulated
    ops = [step.op for step in quantized.program.steps]
    assert ops.count("quantize") == 1 and ops.count("dequantize") == 0 and "call" not in ops and "module" not in ops
    with torch.no_grad():
        wanted = copy.deepcopy(model).double()(x.double())
    noise = (quantized(x).double() - wanted).square().sum()
    assert float(10 * torch.log10(wanted.square().sum() / noise)) > (36 if probe().activation_bits == 8 else 30)
    reference = QuantizedModel(quantized.program, [Simulate()])
    assert float((quantized(x) - reference(x)).abs().max()) < 1e-3 * float(wanted.abs().max())
    assert torch.equal(quantized(x[:1]), quantized(x)[:1])


def test_a_convolution_that_is_called_twice_is_padded_twice() -> None:
    torch.manual_seed(0)
    model, x = Net(lambda s, x: s.c(s.c(x).relu()), c=conv(padding_mode="reflect")).eval(), torch.randn(2, 8, 6, 6)
    graph = simplify(trace(model, x).module, x)
    assert [kind(node) for node in graph.graph.nodes].count("pad") == 2 and torch.allclose(graph(x), model(x), atol=1e-5)
    assert model.c.padding_mode == "reflect"


def test_a_normalization_behind_an_activation_keeps_its_channels() -> None:
    """It is not folded, so that the module that the model has computes it, behind the phases in their places."""
    torch.manual_seed(0)
    _, quantized, _, model, x = converted(nn.Sequential(nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.ReLU6(), normalized(6)))
    with torch.no_grad():
        wanted = copy.deepcopy(model).double()(x.double())
    noise = (QuantizedModel(quantized.program, kernels_for(probe()), dict(model.named_modules()))(x).double() - wanted).square().sum()
    assert float(10 * torch.log10(wanted.square().sum() / noise)) > (36 if probe().activation_bits == 8 else 30)
