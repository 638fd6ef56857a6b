"""Floats of few bits and blocks that share a scale, against ml_dtypes, the OCP documents' values and compressed-tensors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.algorithms.gptq import gptq
from engine.algorithms.hqq import hqq
from engine.algorithms.mse import mse
from engine.algorithms.refine import refine
from engine.errors import EngineError, UsageError
from engine.numerics.formats import FORMATS
from engine.numerics.qtensor import from_tensors
from engine.numerics.scheme import WeightScheme, scheme_of
from engine.numerics.weights import minmax, quantize
from engine.recipe.changes import rule_part
from engine.recipe.number_formats import NUMBER_FORMATS, FormatEntry
from engine.recipe.recipe import Recipe
from engine.recipe.spec import WeightSpec

FLOATS = {
    "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2", "mxfp8": "float8_e4m3fn", "mxfp6_e2m3": "float6_e2m3fn",
    "mxfp6_e3m2": "float6_e3m2fn", "mxfp4": "float4_e2m1fn", "nvfp4": "float4_e2m1fn",
}  # fmt: skip


def scheme(name: str) -> WeightScheme:
    return WeightScheme(FORMATS[name], FORMATS[name].block or 64)


def matrix(rows: int = 24, inputs: int = 160, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(rows, inputs) * torch.rand(rows, 1) * 0.1


@pytest.mark.parametrize("name", FLOATS)
def test_rounding_is_that_of_ml_dtypes(name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="uv sync --group bench")
    form, dtype = FORMATS[name], getattr(ml_dtypes, FLOATS[name])
    torch.manual_seed(0)
    ties = torch.tensor(sorted(level for level in form.levels if not math.isnan(level)))
    ties = (ties[1:] + ties[:-1]) / 2
    values = torch.cat([torch.randn(20_000) * form.high / 4, ties]).clamp(form.low, form.high)
    wanted = values.numpy().astype(dtype)
    assert (form.round(values).numpy() == wanted.astype(np.float32)).all()
    # Codes are the bits, but for minus zero.
    codes = form.encode(form.round(values)).numpy()
    bits = wanted.view(np.uint8)
    assert ((codes == bits) | (wanted.astype(np.float32) == 0)).all()


@pytest.mark.parametrize("name", FLOATS)
def test_every_code_stands_for_what_ml_dtypes_says(name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="uv sync --group bench")
    codes = np.arange(1 << FORMATS[name].bits, dtype=np.uint8)
    wanted = codes.view(getattr(ml_dtypes, FLOATS[name])).astype(np.float32)
    wanted = np.where(np.isfinite(wanted), wanted, np.nan)
    np.testing.assert_array_equal(FORMATS[name].decode(torch.from_numpy(codes)).numpy(), wanted)


def test_the_largest_values_are_those_of_the_documents() -> None:
    largest = {name: FORMATS[name].high for name in NUMBER_FORMATS}
    assert largest == {
        "fp8_e4m3": 448, "fp8_e5m2": 57344, "mxfp8": 448, "mxfp6_e2m3": 7.5, "mxfp6_e3m2": 28, "mxfp4": 6, "mxint8": 127 / 64, "nvfp4": 6,
        "nf4": 1, "q8_0": 127, "q4_0": 7, "q4_1": 15, "q5_0": 15, "q5_1": 31, "q6_k": 31, "q5_k": 31, "q4_k": 15, "q3_k": 3, "q2_k": 3,
    }  # fmt: skip


@pytest.mark.parametrize(("largest", "power"), [(6.0, 0), (7.9, 0), (8.0, 1), (3.9, -1), (4.0, 0), (1e-3, -12), (0.0, -127)])
def test_a_block_of_mxfp4_has_the_power_of_two_of_the_ocp_document(largest: float, power: int) -> None:
    """floor(log2 max) - 2, section 6.3."""
    weight = torch.full((1, 32), largest / 3)
    weight[0, 5] = -largest
    assert minmax(weight, scheme("mxfp4")).step.item() == 2.0**power


def test_scales_of_nvfp4_are_those_of_compressed_tensors() -> None:
    library: Any = pytest.importorskip("compressed_tensors.quantization.utils.helpers", reason="uv sync --group bench")
    weight = matrix(32, 128)
    grid = minmax(weight, scheme("nvfp4"))
    assert grid.tensor_scale is not None
    wanted = library.generate_gparam(weight.amin(), weight.amax())
    assert torch.allclose(grid.tensor_scale.reciprocal(), wanted.float(), rtol=1e-5)
    blocks = weight.reshape(32, 8, 16).abs().amax(2)
    assert torch.equal(grid.scale.float(), (blocks / 6 / grid.tensor_scale).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("name", NUMBER_FORMATS)
@pytest.mark.parametrize("inputs", [160, 33])
def test_what_is_stored_is_read_back_and_counted(name: str, inputs: int) -> None:
    rounded = quantize(matrix(inputs=inputs), minmax(matrix(inputs=inputs), scheme(name)))
    tensors = rounded.to_tensors()
    back = from_tensors(tensors, rounded.meta())
    assert torch.equal(back.dequantize(), rounded.dequantize()) and back.format.name == name
    assert rounded.bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@pytest.mark.parametrize("name", NUMBER_FORMATS)
def test_no_weight_is_further_than_half_a_step_from_where_it_is_put(name: str) -> None:
    weight = matrix()
    grid = minmax(weight, scheme(name))
    step, zero = (part.double() for part in grid.columns(weight.shape[1]))
    levels = torch.tensor(sorted({level for level in FORMATS[name].levels if not math.isnan(level)}), dtype=torch.float64)
    exact = weight.double() / step + zero
    nearest = (levels[(exact[..., None] - levels).abs().argmin(-1)] - zero) * step
    # A real offset is subtracted in float32.
    atol = 1e-7 if FORMATS[name].shifted else 1e-12
    assert torch.allclose(quantize(weight, grid).dequantize().double(), nearest, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("name", NUMBER_FORMATS)
def test_methods_have_less_error_than_rounding_to_nearest_on_every_format(name: str) -> None:
    weight = matrix(48, 192)
    torch.manual_seed(1)
    inputs = torch.randn(2048, 192) * (1 + torch.rand(192) * 3)
    inputs[:, ::2] += inputs[:, 1::2] * 0.7
    second = inputs.T @ inputs / len(inputs)

    def error(found: torch.Tensor) -> float:
        change = found.double() - weight.double()
        return float((change @ second.double() * change).sum())

    grid = minmax(weight, scheme(name))
    plain = quantize(weight, grid)
    first, _ = gptq(weight, grid, second)
    assert error(first.dequantize()) < error(plain.dequantize())
    assert error(refine(first, weight, second).dequantize()) <= error(first.dequantize()) * (1 + 1e-6)
    least = quantize(weight, mse(weight, scheme(name))).dequantize()
    assert (least - weight).square().sum() <= (plain.dequantize() - weight).square().sum()
    assert torch.isfinite(quantize(weight, hqq(weight, scheme(name))).dequantize()).all()


def test_weights_that_are_not_finite_are_refused() -> None:
    for name in ("mxfp4", "nvfp4", "fp8_e4m3"):
        weight = matrix()
        weight[3, 4] = float("inf")
        with pytest.raises(EngineError, match="NaN or infinity"):
            minmax(weight, scheme(name))


def test_a_tensor_of_zeros_stays_one() -> None:
    for name in NUMBER_FORMATS:
        zeros = torch.zeros(4, 64)
        assert torch.equal(quantize(zeros, minmax(zeros, scheme(name))).dequantize(), zeros)


def test_a_recipe_names_a_format_which_settles_bits_and_groups(tmp_path: Path) -> None:
    def spec(**weights: Any) -> WeightSpec:
        recipe = Recipe.make(model="gpt2-mini", rules=[{"match": "*", "weights": weights}])
        found = recipe.layer_rules()[0].spec.weights
        assert found is not None
        return found

    assert str(spec(format="nvfp4", method="gptq")) == "nvfp4 gptq"
    assert scheme_of(spec(format="nvfp4")) == WeightScheme(FORMATS["nvfp4"], 16)
    assert scheme_of(spec(format="fp8_e4m3")) == WeightScheme(FORMATS["fp8_e4m3"], 0)
    assert str(spec(format="nf4", granularity="per-group", group_size=64)) == "nf4 per-group 64"
    recipe = Recipe.make(model="gpt2-mini", rules=[{"match": "*", "weights": {"format": "nvfp4"}}])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe and rule_part(recipe.layer_rules()[0]) == recipe.rules[0]
    with pytest.raises(UsageError, match="weights.bits is 8 and nvfp4 has 4: leave bits out"):
        spec(format="nvfp4", bits=8)
    with pytest.raises(UsageError, match="fp8_e4m3"):
        spec(format="fp7")


def test_a_format_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.numerics.formats import of_entry

    entry = FormatEntry("ternary", 2, "three values", (0.0, 1.0, -1.0, math.nan))
    monkeypatch.setitem(NUMBER_FORMATS, "ternary", entry)
    monkeypatch.setitem(FORMATS, "ternary", of_entry(entry))
    rounded = quantize(matrix(), minmax(matrix(), scheme_of(WeightSpec.of({"format": "ternary"}))))
    assert set(rounded.codes.unique().tolist()) <= {0, 1, 2}
