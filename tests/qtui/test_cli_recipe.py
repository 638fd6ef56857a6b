"""The command line becomes a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from engine.errors import UsageError
from engine.lowering.graph.lowering import GraphLowering
from engine.recipe.cache_spec import CacheSpec
from engine.recipe.recipe import Device, Preset, QatMode, Recipe
from engine.runs.fits import check
from qtui.arguments import DEVICES, PRESETS, QAT_MODES, REPAIRS, build_parser
from qtui.request import overrides, recipe_of


def recipe(*argv: str) -> Recipe:
    return recipe_of(build_parser().read(["run", *argv]))


def test_choices_are_the_recipes() -> None:
    assert (get_args(Preset), get_args(Device), get_args(QatMode)) == (PRESETS, DEVICES, QAT_MODES)
    assert GraphLowering.repairs == REPAIRS


def test_nothing_given_leaves_every_default() -> None:
    assert overrides(build_parser().read(["run", "simplecnn"])) == {"model": "simplecnn"}
    assert recipe("simplecnn") == Recipe.make(model="simplecnn")


def test_repairs_are_named_in_one_option() -> None:
    got = recipe("m:f", "--repair", "equalize,bn_reestimation")
    assert (got.equalize, got.bias_correction, got.bn_reestimation) == (True, False, True)
    with pytest.raises(SystemExit):
        recipe("m:f", "--repair", "equalise")


def test_every_option_reaches_its_field() -> None:
    got = recipe(
        *[
            "m:f",
            "--data",
            "./photos",
            "--weights",
            "w.pt",
            "--device",
            "cpu",
            "--threshold",
            "sqnr:30",
            "--preset",
            "w4a8",
            "--mean",
            "0.1,0.2,0.3",
        ],
        *[
            "--std",
            "1,2,3",
            "--quantize-first",
            "--qat",
            "always",
            "--epochs",
            "3",
            "--export",
            "safetensors",
            "--limit",
            "9",
            "--seed",
            "7",
        ],
    )
    assert got == Recipe.make(
        model="m:f",
        weights="w.pt",
        data={"name": "./photos", "mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0), "limit": 9},
        device="cpu",
        threshold="sqnr:30",
        preset="w4a8",
        quantize_first=True,
        qat={"mode": "always", "epochs": 3},
        export=("safetensors",),
        seed=7,
    )


def test_options_win_over_the_file_key_by_key(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("model: simplecnn\nseed: 4\nquantize_first: true\ndata: {name: cifar10, limit: 5}\nqat: {mode: never, epochs: 9}\n")
    got = recipe("--recipe", str(file), "--limit", "8", "--qat", "auto")
    assert (got.model, got.seed, got.quantize_first) == ("simplecnn", 4, True)
    assert (got.data.name, got.data.limit, got.qat.mode, got.qat.epochs) == ("cifar10", 8, "auto", 9)
    assert recipe("resnet18", "--recipe", str(file)).model == "resnet18"


@pytest.mark.parametrize("argv", [("x", "--threshold", "nonsense"), ("x", "--export", "tarball"), ("x", "--epochs", "0")])
def test_values_are_the_engines_to_judge(argv: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        recipe(*argv)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["run", "simplecnn", "--treshold", "mse:1"], "unknown option --treshold: did you mean --threshold?\nsee qtui run --help"),
        (["run", "simplecnn", "--epoch=2"], "did you mean --epochs?"),
        (["train", "simplecnn", "--dta", "digits"], "did you mean --data?"),
        (["modles"], "unknown command 'modles': did you mean models?\nsee qtui --help"),
        (["train", "simplecnn"], "required: --data"),
        (["train", "simplecnn", "--data", "digits", "--epochs", "0"], "not 1 or more"),
        (["run"], "no model"),
        (["run", "a", "b"], "b"),
        (["run", "a", "--mean", "1,2"], "not three numbers"),
        (["run", "a", "--seed", "x"], "'x' is not a whole number"),
        (["run", "a", "--preset", "w9"], "w8a8"),
    ],
)
def test_wrong_usage_is_one_line_and_a_hint(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        build_parser().read(argv)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert said in error and error.startswith("error: ") and error.count("\n") == 2


def test_what_is_done_with_images_of_a_folder_is_asked_on_the_command_line() -> None:
    words = ["--size", "256", "--crop", "224", "--interpolation", "bicubic", "--classes", "names.txt"]
    part = recipe_of(build_parser().read(["run", "m.py:make", "--data", "images", *words])).data
    assert (part.size, part.crop, part.interpolation, part.classes) == (256, 224, "bicubic", "names.txt")
    assert recipe_of(build_parser().read(["run", "m.py:make"])).fingerprint() == Recipe.make(model="m.py:make").fingerprint()


def test_caches_and_rotations_of_language_models_reach_their_fields() -> None:
    got = recipe("gpt2-mini", "--cache", "fp8:per-tensor", "--rotation", "hadamard")
    assert got.rotation == "hadamard" and got.cache is not None and got.cache.spec() == CacheSpec("fp8_e4m3", "per-tensor")
    with pytest.raises(UsageError, match="no cache of 'int9'"):
        recipe("gpt2-mini", "--cache", "int9")


def test_networks_on_images_have_neither() -> None:
    for option in (("--cache", "int8"), ("--rotation", "hadamard")):
        with pytest.raises(UsageError, match=rf"{option[0][2:]} is for language models, and simplecnn reads images"):
            check(recipe("simplecnn", *option), "images")
