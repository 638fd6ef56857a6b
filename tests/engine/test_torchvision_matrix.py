"""Each family of torchvision's classifiers from trace to verdict, with random weights. The bench does it for every name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from engine.models import custom
from engine.recipe import Recipe

# Members that are too large for a test stand here as their own classes make them, only smaller.
FACTORIES = """
from torch import nn
from torchvision.models import ConvNeXt, MaxVit, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from torchvision.models.vgg import VGG, make_layers


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
WHOLE = "its forward could not be traced"
NO_KERNEL = "no integer kernel for this kind of layer"
# Network, what of it stays in fp32 as (kind, the reason's words), and which operations compute in fp32 between the layers.
CASES: dict[str, tuple[set[tuple[str, str]], set[str]]] = {
    "resnet18": (set(), set()),
    "mobilenet_v2": (set(), set()),
    "mobilenet_v3_small": (set(), {"Hardsigmoid", "Hardswish", "mul"}),
    "efficientnet_b0": (set(), {"SiLU", "Sigmoid", "mul"}),
    "regnet_y_400mf": (set(), {"Sigmoid", "mul"}),
    "shufflenet_v2_x0_5": (set(), set()),
    "squeezenet1_1": (set(), set()),
    "densenet121": ({("BatchNorm2d", "not folded: no convolution or linear layer is right before it")}, {"ReLU", "relu"}),
    "googlenet": (set(), set()),
    "mnasnet0_5": (set(), set()),
    "vgg": (set(), set()),
    "convnext": ({("LayerNorm", NO_KERNEL)}, {"GELU", "mul", "layer_norm"}),
    "vit": ({("LayerNorm", NO_KERNEL), ("MultiheadAttention", NO_KERNEL)}, {"GELU", "add"}),
    "swin": ({("LayerNorm", NO_KERNEL)}, {"GELU", "matmul", "softmax"}),
    "swin_v2": ({("LayerNorm", NO_KERNEL), ("ShiftedWindowAttentionV2", WHOLE)}, {"GELU"}),
    "maxvit": (set(), {"GELU"}),
}
# A deep random network of narrow layers loses any small noise in its own; each of its layers is then judged alone.
LOUD = {"mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf"}


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
def recipe(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> Callable[[str], Recipe]:
    """A recipe on a few digits for a network with random weights."""
    place = tmp_path_factory.mktemp("networks")
    (place / "smaller.py").write_text(FACTORIES)
    write_images(place / "images")
    images = some(place / "images", "train", 16)

    def make(name: str) -> Recipe:
        weights = place / f"{name}.safetensors"
        model = name
        if f"def {name}()" in FACTORIES:
            model = f"{place / 'smaller.py'}:{name}"
            torch.manual_seed(0)
            state = random_weights.settle(custom.build(model), images).state_dict()
            save_file({key: value.contiguous() for key, value in state.items()}, weights)
        else:
            random_weights.write(name, weights, 5, images)
        data = {"name": str(place / "images"), "size": 32, "calibration": 16, "batch": 16}
        return Recipe.make(model=model, weights=str(weights), data=data, preset="w8a8", threshold="sqnr:15", qat={"mode": "never"})

    return make


@pytest.mark.parametrize("name", list(CASES))
def test_a_family_goes_from_trace_to_verdict(name: str, recipe: Callable[[str], Recipe], tmp_path: Path) -> None:
    kept, operations = CASES[name]
    asked = recipe(name)
    outcome = drive(asked, tmp_path / "run")
    report = outcome.data
    layers: list[dict[str, Any]] = report["layers"]
    in_float = [layer for layer in layers if layer["kernel"] == "torch fp32"]
    for kind, words in kept:
        assert any(layer["kind"] == kind and words in layer["reason"] for layer in in_float), (kind, words)
    if name != "maxvit":
        assert {layer["kind"] for layer in in_float} == {kind for kind, _ in kept}
    assert all(layer["reason"] for layer in layers)
    assert operations <= {row["operation"] for row in report["operations"]}
    assert all(row["reason"] and row["count"] for row in report["operations"])
    integer = [layer for layer in layers if layer["kernel"].startswith(("dnnl", "onednn")) and layer["actual"] != "folded"]
    assert integer and min(layer["own_sqnr_db"] for layer in integer) > 12, min((layer["own_sqnr_db"], layer["name"]) for layer in integer)
    assert name in LOUD or report["ptq"]["error"]["sqnr_db"] > 15
    assert report["graph"]["trace_delta"] < 1e-3 and report["graph"]["fuse_delta"] < 1e-2
    whole = {leaf["path"] for leaf in report["graph"]["untraced"]}
    assert whole <= {layer["name"] for layer in layers}
    model: nn.Module | None = custom.build(asked.model) if whole else None
    again = load_quantized(tmp_path / "run", model)(some(asked.data.name, "test", 3))
    assert again.shape == (3, 5) and torch.isfinite(again).all()


def test_a_small_batch_and_a_large_one_agree(recipe: Callable[[str], Recipe], tmp_path: Path) -> None:
    """Windows are cut out of each image: none of the sizes in the graph may be the batch's."""
    asked = recipe("swin")
    assert drive(asked, tmp_path / "run").error is None
    model = load_quantized(tmp_path / "run")
    images = some(asked.data.name, "test", 7)
    assert torch.allclose(model(images)[:1], model(images[:1]), atol=1e-4)
