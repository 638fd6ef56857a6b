"""Methods of the registry in runs of networks: from the recipe to integers on their kernels, with the bits they had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driving
import pytest
import tiny_decoders
import torch
from toy_method import three_means

from engine.algorithms.channelwise import quantize_weight
from engine.algorithms.registry import METHODS, Method
from engine.errors import UsageError
from engine.kernels.choose import kernels_for
from engine.kernels.probe import probe
from engine.kernels.simulate import Simulate
from engine.lowering.graph.artifact import read
from engine.lowering.graph.runtime import QuantizedModel
from engine.lowering.modules.blocks import Task, quantize_blocks
from engine.lowering.modules.progress import MatrixQuantized
from engine.numerics.scheme import int_scheme
from engine.planning.legality import legalize
from engine.recipe.capabilities import of_network
from engine.recipe.recipe import Recipe
from engine.recipe.spec import LayerSpec, WeightSpec
from engine.runs.fits import check


def run(folder: Path, **weights: Any) -> dict[str, Any]:
    """The report of simplecnn on a few digits with ``weights`` in its second convolution."""
    rules = [{"match": "conv2", "weights": {"bits": 4, **weights}, "activations": {"bits": 8}}]
    recipe = Recipe.make(
        model="simplecnn", preset="w8a8", rules=rules, data={"calibration": 64, "limit": 64}, qat={"mode": "never"}, export=()
    )
    outcome = driving.drive(recipe, folder)
    assert outcome.error is None and outcome.report is not None, outcome.error
    return outcome.report.data


def layer(data: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in data["layers"] if row["name"] == name)
    return found


def test_a_convolution_in_four_bits_by_gptq_stays_on_its_integer_kernel_and_says_what_it_brought(tmp_path: Path) -> None:
    data = run(tmp_path / "run", method="gptq")
    row = layer(data, "conv2")
    assert row["actual"].startswith("w4 per-channel gptq") and "held back" in row["reason"] and row["kernel"] != "torch fp32"
    plain = run(tmp_path / "plain")
    assert row["own_sqnr_db"] > layer(plain, "conv2")["own_sqnr_db"]
    assert "held back" not in layer(plain, "conv2")["reason"]


def test_a_method_of_ones_own_is_one_line_in_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "three-means", Method("three means", three_means))
    row = layer(run(tmp_path / "run", method="three-means"), "conv2")
    assert row["actual"].startswith("w4 per-channel three-means")
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    found = quantize_weight(weight, WeightSpec(4, method="three-means"))
    torch.testing.assert_close(found.scale[:, 0], 3 * weight.abs().mean(1) / 7, rtol=1e-3, atol=0)
    assert legalize(LayerSpec(WeightSpec(4, method="three-means")), of_network("convolution"), 8) == (
        LayerSpec(WeightSpec(4, method="three-means")),
        None,
    )


def test_a_method_of_ones_own_rounds_a_decoder_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "three-means", Method("three means", three_means))
    model = tiny_decoders.decoder("gpt2")
    steps = quantize_blocks(tiny_decoders.blocks_of(model, "gpt2"), [], lambda _: Task(int_scheme(4, 0, True), "three-means"))
    events: list[Any] = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            packed = end.value
            break
    assert {e.method for e in events if isinstance(e, MatrixQuantized)} == {"three means"} and len(packed) == 8


def test_native_kernels_compute_what_the_simulation_does_on_gptqs_integers(tmp_path: Path) -> None:
    run(tmp_path / "run", method="gptq")
    program, _ = read(tmp_path / "run" / "model.safetensors")
    machine = probe()
    native, simulated = (QuantizedModel(program, kernels) for kernels in (kernels_for(machine), [Simulate()]))
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        a, b = native(x), simulated(x)
    assert (a - b).abs().max() <= 0.05 * b.abs().max() and torch.equal(a.argmax(1), b.argmax(1))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs_blocks])
def test_methods_that_need_the_blocks_of_a_decoder_are_refused_in_a_sentence(name: str) -> None:
    rules = [{"match": "conv2", "weights": {"method": name}}]
    sentences = r"folds scales into the layer before|carries errors from block to block|weighs errors by its inputs' moments"
    sentences += "|what a decoder's blocks give"
    with pytest.raises(UsageError, match=sentences):
        check(Recipe.make(model="simplecnn", rules=rules), "images")
    actual, why = legalize(LayerSpec(WeightSpec(4, method=name)), of_network("convolution"), 8)
    assert actual == LayerSpec(WeightSpec(4)) and why is not None and name in why


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.needs_blocks])
def test_other_methods_are_for_networks_too(name: str) -> None:
    check(Recipe.make(model="simplecnn", rules=[{"match": "conv2", "weights": {"method": name}}]), "images")
    assert legalize(LayerSpec(WeightSpec(4, method=name)), of_network("convolution"), 8) == (LayerSpec(WeightSpec(4, method=name)), None)


def test_a_name_that_is_no_method_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="must be one of nearest, mse, hqq, gptq"):
        Recipe.make(model="simplecnn", rules=[{"match": "conv2", "weights": {"method": "gptg"}}])
