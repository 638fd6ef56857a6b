"""engine/recipe/fits.py: words that a model of the other kind has no use for are told, not passed over."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import driving
import pytest

from engine.errors import UsageError
from engine.planning.legality import legalize
from engine.recipe.capabilities import CONVOLUTION
from engine.recipe.recipe import Recipe
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec
from engine.runs.fits import check


def rule(**weights: Any) -> dict[str, Any]:
    return {"rules": [{"match": "fc*", "weights": {"bits": 4, **weights}}]}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"stem": "small"}, "stem is for networks on images"),
        ({"quantize_first": True}, "quantize_first"),
        ({"fold_later": ["bn1"]}, "fold_later"),
        ({"slower": ["fc"]}, "slower"),
        ({"data": {"mean": (0, 0, 0), "std": (1, 1, 1)}}, "data.mean"),
        ({"data": {"size": 32}}, "data.size"),
        ({"data": {"batch": 8}}, "data.batch"),
        ({"qat": {"freeze_bn": 0.1}}, "qat.freeze_bn"),
    ],
)
def test_words_of_images_are_refused_for_text(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=rf"{re.escape(said)}.* and gpt2-mini reads text: leave it out"):
        check(Recipe.make(model="gpt2-mini", **asked), "text")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"data": {"context": 128}}, "data.context is for language models"),
        ({"data": {"stride": 64}}, "data.stride"),
        ({"graph": "export"}, "graph: export"),
        ({"export": ["compressed-tensors"]}, "export to compressed-tensors"),
        (rule(method="gptq"), "rule 'fc*': method gptq"),
        (rule(symmetric=False), "rule 'fc*': symmetric: false of weights"),
        ({"rules": [{"match": "*", "weights": {}, "activations": {"dynamic": True}}]}, "rule '*': dynamic: true"),
    ],
)
def test_words_of_text_are_refused_for_images(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=rf"{re.escape(said)}.* and resnet18 reads images: leave it out"):
        check(Recipe.make(model="resnet18", **asked), "images")


def test_the_clip_of_least_error_is_for_images_too() -> None:
    check(Recipe.make(model="resnet18", **rule(method="mse")), language=False)
    wanted = LayerSpec(WeightSpec(4, method="mse"))
    assert legalize(wanted, CONVOLUTION, 8) == (wanted, None)


def test_a_run_asks_before_it_loads_anything(tmp_path: Path) -> None:
    outcome = driving.drive(Recipe.make(model="simplecnn", data={"context": 128}), tmp_path / "run")
    assert "data.context is for language models" in str(outcome.error) and outcome.events == [] and not (tmp_path / "run").exists()


def test_a_text_is_no_data_for_images() -> None:
    with pytest.raises(UsageError, match="python-docs is text and resnet18 reads images: give --data digits"):
        check(Recipe.make(model="resnet18", data={"name": "python-docs"}), "images")


@pytest.mark.parametrize("reads", ["text", "images", "anything"])
def test_what_a_run_writes_into_its_recipe_is_no_request(reads: str) -> None:
    check(Recipe.make(**Recipe(model="m").model_dump()), reads)


def test_a_plan_of_a_network_never_claims_a_method_that_it_does_not_use() -> None:
    asked = LayerSpec(WeightSpec(4, method="gptq", symmetric=False), ActivationSpec(8, dynamic=True))
    actual, why = legalize(asked, CONVOLUTION, 8)
    assert actual == LayerSpec(WeightSpec(4), ActivationSpec(8)) and why is not None and "language models" in why
    assert legalize(LayerSpec(WeightSpec(4), ActivationSpec(8)), CONVOLUTION, 8) == (LayerSpec(WeightSpec(4), ActivationSpec(8)), None)
