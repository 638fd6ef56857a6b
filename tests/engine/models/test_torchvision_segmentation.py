"""torchvision's networks for segmentation: the table of their weights, and their way through a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model_weights, list_models, segmentation

import engine
from engine.errors import EngineError
from engine.models.registry import find
from engine.models.torchvision_segmentation import CLASSES, SEGMENTERS
from engine.recipe.recipe import Recipe


def test_the_table_is_that_of_torchvision() -> None:
    assert {known.name for known in SEGMENTERS} == set(list_models(module=segmentation))
    for known in SEGMENTERS:
        weights = get_model_weights(known.name).DEFAULT
        assert weights.url.rpartition("/")[2].startswith(f"{known.file}-")
        assert weights.meta["_file_size"] == pytest.approx(known.mib, abs=0.001)
        assert len(weights.meta["categories"]) == CLASSES


def test_weights_with_an_auxiliary_head_are_taken_without_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=11)
    state = {**published.state_dict(), "aux_classifier.0.weight": torch.zeros(3)}
    save_file(state, tmp_path / "weights.safetensors")
    recipe = Recipe.make(
        model="lraspp_mobilenet_v3_large", weights=str(tmp_path / "weights.safetensors"), preset="w8a8",
        data={"name": "digit-scenes", "limit": 8, "calibration": 8},
    )  # fmt: skip
    report = engine.quantize(recipe, tmp_path / "run").data
    assert report["task"] == "segmentation" and not [layer["name"] for layer in report["layers"] if "fp32" in layer["kernel"]]
    assert report["ptq"]["error"]["sqnr_db"] > 10


def test_without_weights_the_way_to_them_is_told(tmp_path: Path) -> None:
    assert find("fcn_resnet50").task == "segmentation"
    with pytest.raises(EngineError, match="fcn_resnet50 has no weights for digit-scenes .* run `qtui train fcn_resnet50"):
        engine.quantize(Recipe.make(model="fcn_resnet50"), tmp_path / "run")
