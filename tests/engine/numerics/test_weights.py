from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load, save

from engine.errors import EngineError, UsageError
from engine.numerics.qtensor import from_tensors
from engine.numerics.scheme import WeightScheme, int_scheme
from engine.numerics.weights import minmax, quantize

SPECS = [int_scheme(b, g, s) for b in (2, 3, 4, 5, 8) for g in (0, 32, 48) for s in (True, False)]


def reference(weight: torch.Tensor, spec: WeightScheme) -> torch.Tensor:
    """Group after group in float64, with the scale rounded to float16."""
    out = weight.double().clone()
    size = spec.group_size or weight.shape[1]
    for row in out:
        for start in range(0, len(row), size):
            part = row[start : start + size]
            low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
            levels = 2 ** (spec.bits - 1) - 1 if spec.symmetric else 2**spec.bits - 1
            span = max(-low, high) if spec.symmetric else high - low
            scale = torch.tensor(span / levels, dtype=torch.float32).half().double().item()
            if spec.symmetric:
                part.copy_(torch.tensor([max(-levels - 1, min(levels, round(v / scale))) * scale for v in part.tolist()]))
            else:
                zero = max(0, min(levels, round(-low / scale)))
                part.copy_(torch.tensor([(max(0, min(levels, round(v / scale) + zero)) - zero) * scale for v in part.tolist()]))
    return out


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_it_agrees_with_plain_loops_in_float64(spec: WeightScheme) -> None:
    weight = torch.randn(6, 112, generator=torch.Generator().manual_seed(1)) * 0.05
    rounded = quantize(weight, minmax(weight, spec)).dequantize().double()
    wanted = reference(weight, spec)
    # A weight in the middle of two integers may go either way.
    off = (rounded - wanted).abs() > 1e-6
    assert off.float().mean() < 0.005
    assert (rounded - weight).abs().max() <= (wanted - weight).abs().max() * 1.001


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_tensors_hold_all_of_it_and_their_bytes_are_the_bytes_that_are_stated(spec: WeightScheme) -> None:
    weight = torch.randn(7, 100)
    made = quantize(weight, minmax(weight, spec))
    held = load(save(made.to_tensors()))
    back = from_tensors(held, made.meta())
    assert torch.equal(back.codes, made.codes) and back.codes.dtype == made.codes.dtype
    assert torch.equal(back.dequantize(), made.dequantize()) and back.scheme == spec
    assert sum(t.numel() * t.element_size() for t in held.values()) == made.bytes == spec.storage_bytes(7, 100)


def test_four_bits_in_groups_of_64_are_a_quarter_of_half_precision_and_a_little() -> None:
    assert int_scheme(4, 64, True).storage_bytes(768, 768) == 768 * (384 + 2 * 12)
    assert int_scheme(4, 64, False).storage_bytes(768, 768) == 768 * (384 + 2 * 12 + 6)
    assert int_scheme(3, 64, False).storage_bytes(768, 768) == 768 * (288 + 2 * 12 + math.ceil(36 / 8))


def test_zero_is_represented_exactly_and_groups_of_one_sign_are_covered() -> None:
    weight = torch.rand(3, 64) * 0.1 + 0.4
    weight[:, 5] = 0
    made = quantize(weight, minmax(weight, int_scheme(4, 32)))
    assert torch.equal(made.dequantize()[:, 5], torch.zeros(3))
    assert (made.dequantize() - weight).abs().max() <= 0.5 / 15 / 2 + 1e-3


def test_zeros_and_weights_below_float16_stay_finite() -> None:
    weight = torch.zeros(2, 64)
    weight[1] = 1e-9
    for symmetric in (True, False):
        made = quantize(weight, minmax(weight, int_scheme(4, 32, symmetric)))
        assert torch.isfinite(made.dequantize()).all() and made.dequantize().abs().max() < 1e-6


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    weight = torch.ones(2, 64)
    weight[1, 3] = bad
    with pytest.raises(EngineError, match="NaN or infinity"):
        minmax(weight, int_scheme())


def test_a_step_beyond_float16_is_refused() -> None:
    with pytest.raises(EngineError, match="beyond float16"):
        minmax(torch.full((1, 8), 1e7), int_scheme(4, 8))


@pytest.mark.parametrize(("bits", "size"), [(1, 64), (9, 64), (4, -1)])
def test_other_settings_are_refused(bits: int, size: int) -> None:
    with pytest.raises(UsageError):
        int_scheme(bits, size)


def test_tensors_and_meta_that_do_not_belong_together_are_refused() -> None:
    weight = torch.randn(4, 64)
    made = quantize(weight, minmax(weight, int_scheme(4, 32)))
    tensors, meta = made.to_tensors(), made.meta()
    for worse in (
        {**meta, "shape": [4, 128]}, {**meta, "shape": [5, 64]}, {**meta, "bits": 3}, {**meta, "group_size": 16},
        {**meta, "bits": "x"}, {"bits": 4},
    ):  # fmt: skip
        with pytest.raises(EngineError, match="damaged"):
            from_tensors(tensors, worse)
    with pytest.raises(EngineError, match="damaged"):
        from_tensors({"packed": tensors["packed"], "scale": tensors["scale"]}, meta)


def test_a_spec_names_itself() -> None:
    assert str(int_scheme(4, 64)) == "w4 g64 affine" and str(int_scheme(8, 0, True)) == "w8 per-channel sym"
