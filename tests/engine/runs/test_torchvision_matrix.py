"""Each family of torchvision's classifiers from trace to verdict, with random weights. The bench does it for every name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import noise_model
import numpy as np
import pytest
import random_weights
import torch
from driving import drive
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from engine import load_quantized
from engine.data import registry as data_registry
from engine.kernels.probe import probe
from engine.models import custom
from engine.recipe.recipe import Recipe

# As their own classes make them, only shallow and narrow: every kind of block that the family has is in them.
FACTORIES = """
from functools import partial
from torch import nn
from torchvision.models import ConvNeXt, DenseNet, EfficientNet, MaxVit, MobileNetV2, MobileNetV3, RegNet, ResNet, ShuffleNetV2
from torchvision.models import SqueezeNet, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from torchvision.models.vgg import VGG, make_layers


def resnet():
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)


def resnext():
    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, groups=8, width_per_group=2)


def wide_resnet():
    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, width_per_group=32)


def mobilenet_v2():
    return MobileNetV2(5, 0.5, [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]])


def mobilenet_v3():
    block = partial(InvertedResidualConfig, width_mult=1.0)
    blocks = [block(16, 3, 16, 16, True, "RE", 2, 1), block(16, 3, 48, 16, False, "RE", 1, 1), block(16, 5, 64, 24, True, "HS", 2, 1)]
    return MobileNetV3(blocks, 64, num_classes=5)


def efficientnet():
    block = partial(MBConvConfig, width_mult=1.0, depth_mult=1.0)
    return EfficientNet([block(1, 3, 1, 16, 16, 1), block(6, 3, 2, 16, 24, 2), block(6, 5, 2, 24, 32, 1)], 0.1, num_classes=5)


def efficientnet_v2():
    blocks = [FusedMBConvConfig(1, 3, 1, 16, 16, 2), FusedMBConvConfig(4, 3, 2, 16, 24, 1), MBConvConfig(4, 3, 2, 24, 32, 2)]
    return EfficientNet(blocks, 0.1, num_classes=5, last_channel=64)


def regnet_x():
    return RegNet(BlockParams.from_init_params(depth=5, w_0=24, w_a=24, w_m=2.5, group_width=8), num_classes=5)


def regnet_y():
    return RegNet(BlockParams.from_init_params(depth=5, w_0=24, w_a=24, w_m=2.5, group_width=8, se_ratio=0.25), num_classes=5)


def shufflenet():
    model = ShuffleNetV2([2, 2, 2], [24, 32, 48, 64, 96], num_classes=5)
    model.conv1[0].stride, model.maxpool = (1, 1), nn.Identity()
    return model


def squeezenet():
    return SqueezeNet("1_1", 5)


def densenet():
    return DenseNet(8, (2, 2), 16, 4, num_classes=5)


def vgg():
    model = VGG(make_layers([16, "M", 32, 32, "M", 64, "M", 64, "M"], batch_norm=True), num_classes=5)
    model.classifier = nn.Sequential(nn.Linear(64 * 49, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 5))
    return model


def convnext():
    return ConvNeXt([CNBlockConfig(24, 48, 2), CNBlockConfig(48, None, 2)], num_classes=5)


def vit():
    return VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=5)


def swin():
    return SwinTransformer([2, 2], 24, [2, 2], [3, 6], [3, 3], num_classes=5)


def swin_v2():
    second = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    return SwinTransformer([2, 2], 24, [2, 2], [3, 6], [3, 3], num_classes=5, **second)


def maxvit():
    return MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 8, 0.1, num_classes=5)
"""
NO_KERNEL = "no integer kernel for this kind of layer"
Kept = set[tuple[str, str]]
# Network, what of it stays in fp32 as (kind, the reason's words), and which operations compute in fp32 between the layers.
CASES: dict[str, tuple[Kept, set[str]]] = {
    **dict.fromkeys(("resnet", "resnext", "wide_resnet", "mobilenet_v2", "regnet_x", "shufflenet", "vgg"), (set(), set())),
    # Its classifier ends in a convolution whose result is averaged.
    "squeezenet": (set(), {"AdaptiveAvgPool2d"}),
    "mobilenet_v3": (set(), set()),
    "efficientnet": (set(), set()),
    "efficientnet_v2": (set(), set()),
    "regnet_y": (set(), set()),
    "densenet": (set(), set()),
    "convnext": ({("LayerNorm", NO_KERNEL)}, {"mul", "layer_norm"}),
    "vit": ({("LayerNorm", NO_KERNEL), ("MultiheadAttention", NO_KERNEL)}, {"add"}),
    "swin": ({("LayerNorm", NO_KERNEL)}, {"matmul", "softmax"}),
    "swin_v2": ({("LayerNorm", NO_KERNEL)}, {"softmax"}),
    "maxvit": ({("LayerNorm", NO_KERNEL)}, {"einsum", "softmax"}),
}
# Published members with all their layers, the smallest of each family.
MEMBERS = (
    "resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "regnet_x_400mf", "regnet_y_400mf", "shufflenet_v2_x0_5",
    "squeezenet1_1", "densenet121", "googlenet", "mnasnet0_5", "mnasnet1_3",
)  # fmt: skip


def write_images(place: Path) -> None:
    """Five classes of 8 coloured patterns: few, so that a run's time is the network's own."""
    draw = np.random.default_rng(0)
    for name in "abcde":
        (place / name).mkdir(parents=True)
        for index in range(8):
            pattern = Image.fromarray(draw.integers(0, 255, (6, 6, 3)).astype(np.uint8))
            pattern.resize((32, 32), Image.Resampling.BICUBIC).save(place / name / f"{index}.png")


def some(folder: Path | str, split: Any, count: int) -> torch.Tensor:
    return next(data_registry.load(str(folder), size=32).batches(split, count, limit=count))[0]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> Callable[..., Recipe]:
    """A recipe on a few digits for a network with random weights."""
    place = tmp_path_factory.mktemp("networks")
    (place / "smaller.py").write_text(FACTORIES)
    write_images(place / "images")
    images = some(place / "images", "train", 16)

    def make(name: str, published: bool = False) -> Recipe:
        weights = place / f"{name}{'-published' if published else ''}.safetensors"
        model = name
        if f"def {name}()" in FACTORIES and not published:
            model = f"{place / 'smaller.py'}:{name}"
            torch.manual_seed(0)
            state = random_weights.settle(random_weights.quiet_branches(custom.build(model)), images).state_dict()
            save_file({key: value.contiguous() for key, value in state.items()}, weights)
        else:
            random_weights.write(name, weights, 5, images)
        data = {"name": str(place / "images"), "size": 32, "calibration": 16, "batch": 16}
        return Recipe.make(model=model, weights=str(weights), data=data, preset="w8a8", threshold="sqnr:15", qat={"mode": "never"})

    return make


def judged(asked: Recipe, place: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report of a run and those of its layers that compute in fp32, each layer held to what is asked of every network."""
    report = drive(asked, place).data
    layers: list[dict[str, Any]] = report["layers"]
    assert all(layer["reason"] for layer in layers) and all(row["reason"] and row["count"] for row in report["operations"])
    integer = [layer for layer in layers if layer["kernel"].startswith(("dnnl", "onednn")) and layer["actual"] != "folded"]
    # A normalization on integers is a step of its own, whose noise is not told apart.
    integer = [layer for layer in integer if layer["own_sqnr_db"] is not None or layer["kind"] != "BatchNorm2d"]
    assert integer and min(layer["own_sqnr_db"] for layer in integer) > 12, min((layer["own_sqnr_db"], layer["name"]) for layer in integer)
    assert report["graph"]["trace_delta"] < 1e-3 and report["graph"]["fuse_delta"] < 1e-2
    assert {leaf["path"] for leaf in report["graph"]["untraced"]} <= {layer["name"] for layer in layers}
    assert report["verdict"]["text"]
    return report, [layer for layer in layers if layer["kernel"] == "torch fp32"]


@pytest.mark.parametrize("name", list(CASES))
def test_a_family_goes_from_trace_to_verdict(name: str, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    kept, operations = CASES[name]
    asked = recipe(name)
    report, in_float = judged(asked, tmp_path / "run")
    for kind, words in kept:
        assert any(layer["kind"] == kind and words in layer["reason"] for layer in in_float), (kind, words)
    assert {layer["kind"] for layer in in_float} == {kind for kind, _ in kept}
    assert operations <= {row["operation"] for row in report["operations"]} and bool(operations) == bool(report["operations"])
    # Every bit of activations that the processor lacks costs 6 dB.
    assert report["ptq"]["error"]["sqnr_db"] > 18 - 6 * (8 - probe().activation_bits)
    model: nn.Module | None = custom.build(asked.model) if report["graph"]["untraced"] else None
    again = load_quantized(tmp_path / "run", model)(some(asked.data.name, "test", 3))
    assert again.shape == (3, 5) and torch.isfinite(again).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMBERS)
def test_a_published_member_has_no_more_noise_than_its_layers_make(name: str, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    asked = recipe(name, True)
    report, in_float = judged(asked, tmp_path / "run")
    assert not in_float
    model = random_weights.load(name, Path(str(asked.weights)), 5, 32)
    own = {layer["name"]: layer["own_sqnr_db"] for layer in report["layers"] if layer["own_sqnr_db"] is not None}
    # The model takes the layers' errors for independent; behind a rectifier and a mean over few places they are not.
    assert report["ptq"]["error"]["sqnr_db"] > noise_model.expected_sqnr(model, some(asked.data.name, "test", 8), own) - 12


def test_a_small_batch_and_a_large_one_agree(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """Windows are cut out of each image: none of the sizes in the graph may be the batch's."""
    asked = recipe("swin")
    assert drive(asked, tmp_path / "run").error is None
    model = load_quantized(tmp_path / "run")
    images = some(asked.data.name, "test", 7)
    assert torch.allclose(model(images)[:1], model(images[:1]), atol=1e-4)
