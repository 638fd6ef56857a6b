"""Activations in floats of few bits, against ml_dtypes and torch's own scaled product."""

from __future__ import annotations

import pytest
import torch

from engine.numerics.float_activations import round_floats, round_values, static_step
from engine.numerics.formats import FORMATS
from engine.numerics.qtensor import from_tensors
from engine.numerics.scheme import WeightScheme
from engine.numerics.weights import minmax, quantize
from engine.recipe.spec import ActivationSpec

TOKEN = ActivationSpec.of({"format": "fp8_e4m3", "dynamic": True})
TENSOR = ActivationSpec.of({"format": "fp8_e4m3"})


def some(rows: int = 40, width: int = 200) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(rows, width, generator=draw) * torch.exp(torch.randn(rows, 1, generator=draw) * 3)


def test_values_are_those_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = torch.cat([some().flatten(), torch.tensor([0.0, -0.0, 448.0, 447.9, 2.0**-9, 2.0**-10, 1.5 * 2.0**-9, 17.0, 18.0, 19.0])])
    inside = values.clamp(-448, 448)
    wanted = inside.numpy().astype(ml_dtypes.float8_e4m3fn).astype("float32")
    assert torch.equal(round_values(values, FORMATS["fp8_e4m3"]), torch.from_numpy(wanted))


def test_what_lies_beyond_the_largest_value_is_clipped() -> None:
    assert round_values(torch.tensor([1e9, -1e9, 465.0]), FORMATS["fp8_e4m3"]).tolist() == [448.0, -448.0, 448.0]
    assert round_floats(torch.tensor([[100.0, 1.0]]), TENSOR, 0.1).max() == pytest.approx(44.8)


def test_each_token_has_its_own_step() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = some()
    exact = x.double().numpy()
    step = (x.abs().amax(1, keepdim=True) / 448).numpy()
    wanted = (exact / step.astype("float64")).astype("float32").clip(-448, 448).astype(ml_dtypes.float8_e4m3fn).astype("float64") * step
    found = round_floats(x, TOKEN).double()
    # A division in float32 may fall on the other side of a tie of float64.
    assert (found - torch.from_numpy(wanted)).abs().gt(1e-6 * x.abs().amax(1, keepdim=True)).double().mean() < 1e-3
    assert (found - x).abs().div(x.abs().clamp_min(1e-3 * x.abs().amax(1, keepdim=True))).max() <= 2**-4 * 1.001


def test_groups_of_a_token_have_steps_of_their_own_and_the_last_may_be_short() -> None:
    spec = ActivationSpec.of({"format": "fp8_e4m3", "dynamic": True, "group_size": 128})
    x = some()
    wanted = torch.cat([round_floats(x[:, :128], TOKEN), round_floats(x[:, 128:], TOKEN)], 1)
    assert torch.equal(round_floats(x, spec), wanted)


@pytest.mark.parametrize("name", ["mxfp8", "mxfp4"])
def test_microscaling_activations_are_those_of_weights_in_the_same_blocks(name: str) -> None:
    x = some(width=64)
    scheme = WeightScheme(FORMATS[name], 32)
    spec = ActivationSpec.of({"format": name})
    assert spec.dynamic and spec.group_size == 32
    assert torch.equal(round_floats(x, spec), quantize(x, minmax(x, scheme)).dequantize())


def test_tokens_of_zeros_stay_zeros() -> None:
    x = torch.zeros(2, 64)
    for spec in (TOKEN, ActivationSpec.of({"format": "mxfp8"})):
        assert torch.equal(round_floats(x, spec), x)
    assert static_step(0.0, 0.0, "fp8_e4m3") == 1.0
    with pytest.raises(ValueError, match="need a step"):
        round_floats(x, TENSOR)


def test_the_product_is_that_of_torchs_scaled_matrices() -> None:
    x, weight = some(32, 64), some(48, 64)
    rounded = quantize(weight, minmax(weight, WeightScheme(FORMATS["fp8_e4m3"])))
    step = x.abs().max() / 448
    codes = (x / step).clamp(-448, 448).to(torch.float8_e4m3fn)
    whole = torch.ones(())
    try:
        got = torch._scaled_mm(codes, rounded.codes.view(torch.float8_e4m3fn).T, whole, whole, out_dtype=torch.float32)
    except (RuntimeError, NotImplementedError):
        pytest.skip("this torch has no scaled product on the processor")
    spec = ActivationSpec.of({"format": "fp8_e4m3"})
    mine = round_floats(x, spec, float(step)) @ rounded.dequantize().T
    assert torch.allclose(mine, got * step * rounded.scale.float().T, rtol=2e-3, atol=1e-4 * float(mine.abs().max()))


@pytest.mark.parametrize(("out", "inputs"), [(256, 256), (200, 130), (5, 7)])
def test_blocks_of_128_by_128_share_a_scale(out: int, inputs: int) -> None:
    weight = some(out, inputs)
    scheme = WeightScheme(FORMATS["fp8_e4m3"], 128, 128)
    found = quantize(weight, minmax(weight, scheme))
    stored = found.to_tensors()
    assert stored["scale"].shape == (-(-out // 128), -(-inputs // 128))
    assert sum(t.numel() * t.element_size() for t in stored.values()) == found.bytes
    for row in range(0, out, 128):
        for column in range(0, inputs, 128):
            block = weight[row : row + 128, column : column + 128]
            step = (block.abs().max() / 448).clamp_min(2**-20).half().float()
            wanted = (block / step).clamp(-448, 448).to(torch.float8_e4m3fn).float() * step
            assert torch.equal(found.dequantize()[row : row + 128, column : column + 128], wanted)
    again = from_tensors(stored, found.meta())
    assert torch.equal(again.dequantize(), found.dequantize()) and again.scheme == scheme


def test_one_scale_for_the_whole_matrix_is_stored_once() -> None:
    weight = some()
    found = quantize(weight, minmax(weight, WeightScheme(FORMATS["fp8_e4m3"], 0, 0)))
    assert found.to_tensors()["scale"].numel() == 1 and len(found.scale.unique()) == 1
    assert torch.equal(from_tensors(found.to_tensors(), found.meta()).dequantize(), found.dequantize())
