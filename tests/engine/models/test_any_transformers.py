"""Any model of transformers in fidelity, by its folder: images drawn at random, outputs with names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driving
import pytest
import torch
import transformers

from engine.api import quantize
from engine.errors import EngineError, UsageError
from engine.models.any_transformers import is_transformers, load, preprocessing
from engine.recipe.recipe import Recipe

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}


def folder(place: Path, config: Any, model: Any) -> str:
    torch.manual_seed(0)
    model(config).save_pretrained(place)
    return str(place)


def recipe(model: str, **fields: Any) -> Recipe:
    return Recipe.make(model=model, task="fidelity", data={"name": "random:3x8x8", "calibration": 16}, qat={"mode": "never"}, **fields)


@pytest.mark.parametrize("kind", ["ViTForImageClassification", "Dinov2Model", "CLIPVisionModelWithProjection"])
def test_a_folder_runs_on_inputs_of_a_shape_and_its_outputs_have_names(kind: str, own_cache: Path, tmp_path: Path) -> None:
    config = {
        "ViTForImageClassification": transformers.ViTConfig(**SIZES, intermediate_size=32, num_labels=4),
        "Dinov2Model": transformers.Dinov2Config(**SIZES),
        "CLIPVisionModelWithProjection": transformers.CLIPVisionConfig(**SIZES, intermediate_size=32, projection_dim=8),
    }[kind]
    place = folder(tmp_path / "model", config, getattr(transformers, kind))
    plain = getattr(transformers, kind).from_pretrained(place).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(load(place)(x)[0], plain(x)[0], atol=1e-5)
    assert is_transformers(place) and preprocessing(place) is None
    with driving.untimed():
        data = quantize(recipe(place), tmp_path / "run").data
    assert data["task"] == "fidelity" and data["coverage"]["macs_integer"] > 0.8 * data["coverage"]["macs_total"]
    assert data["ptq"]["error"]["sqnr_db"] > 5


def test_what_is_no_model_of_transformers_is_one_line(own_cache: Path, tmp_path: Path) -> None:
    place = tmp_path / "odd"
    folder(place, transformers.ViTConfig(**SIZES, intermediate_size=32), transformers.ViTModel)
    config = (place / "config.json").read_text().replace("ViTModel", "NoSuchModel")
    (place / "config.json").write_text(config)
    with pytest.raises(EngineError, match="NoSuchModel, which transformers .* does not have"):
        quantize(recipe(str(place)), tmp_path / "run")
    with pytest.raises(UsageError, match="leave --weights out"):
        quantize(recipe(str(place), weights="w.safetensors"), tmp_path / "run")
    assert not is_transformers("simplecnn") and not is_transformers(f"{place}:make") and not is_transformers(str(tmp_path))
