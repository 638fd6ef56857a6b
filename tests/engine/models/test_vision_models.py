"""Image classifiers of transformers from a folder: what their preprocessor says, and classes by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.errors import EngineError
from engine.models.transform import Transform
from engine.models.vision_models import is_vision, load_vision, transform_of
from engine.tasks.registry import task_of

LABELS = ("tabby, tabby cat", "dog", "owl")


def _vit(folder: Path, **preprocessor: Any) -> Path:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8,
        id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    given = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.5, 0.2], "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**given, **preprocessor}))
    return folder


def test_the_outputs_are_those_of_the_classes_by_their_names(tmp_path: Path) -> None:
    folder = _vit(tmp_path / "vit")
    assert is_vision(str(folder)) and task_of(str(folder)).name == "classification"
    plain = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(load_vision(str(folder), ("owl", "tabby"))(x), plain(x).logits[:, [2, 0]], atol=1e-6)
    with pytest.raises(EngineError, match="1 of 2 classes are not .*'horse'.: it has 'tabby, tabby cat', 'dog'"):
        load_vision(str(folder), ("owl", "horse"))


def test_outputs_without_names_are_in_the_order_of_as_many_classes(tmp_path: Path) -> None:
    folder = _vit(tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {str(i): f"LABEL_{i}" for i in range(3)}}))
    plain = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    x = torch.randn(2, 3, 32, 32)
    model = load_vision(str(folder), ("x", "y", "z"))
    with torch.no_grad():
        assert model.unnamed and torch.allclose(model(x), plain(x).logits, atol=1e-6)
    with pytest.raises(EngineError, match="2 of 2 classes are not"):
        load_vision(str(folder), ("x", "y"))


def test_sizes_and_normalization_are_those_of_the_preprocessor(tmp_path: Path) -> None:
    assert transform_of(str(_vit(tmp_path / "a"))) == Transform(32, 32, "bicubic", (0.5, 0.4, 0.3), (0.5, 0.5, 0.2))
    crop = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "resample": 2}
    found = transform_of(str(_vit(tmp_path / "b", **crop)))
    assert (found.size, found.resize, found.interpolation) == (224, 256, "bilinear")
    convnext = {"size": {"shortest_edge": 224}, "crop_pct": 0.875}
    found = transform_of(str(_vit(tmp_path / "c", **convnext)))
    assert (found.size, found.resize) == (224, 256)
    (tmp_path / "c" / "preprocessor_config.json").unlink()
    with pytest.raises(EngineError, match=r"has no preprocessor_config.json"):
        transform_of(str(tmp_path / "c"))
