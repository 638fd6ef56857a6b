"""AutoRound's offsets and clips: what is computed with is what is stored, gradients are those of the paper, and a block gains by them."""

from __future__ import annotations

import pytest
import torch

from engine.algorithms.sign_rounding import SignRounding, sign_step, spacing
from engine.numerics.formats import FORMATS
from engine.numerics.scheme import WeightScheme, int_scheme
from engine.numerics.weights import minmax, quantize

SCHEMES = [
    int_scheme(4, 32), int_scheme(3, 32, True), int_scheme(4, 24), int_scheme(8, 0, True),
    *(WeightScheme(FORMATS[name], FORMATS[name].block) for name in ("fp8_e4m3", "nvfp4", "mxfp4", "q4_0", "q4_1")),
    WeightScheme(FORMATS["nf4"], 64),
]  # fmt: skip


def some(out: int = 24, inputs: int = 64) -> torch.Tensor:
    return torch.randn(out, inputs, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_it_begins_with_rounding_to_nearest(scheme: WeightScheme) -> None:
    weight = some()
    wanted = quantize(weight, minmax(weight, scheme))
    soft = SignRounding(weight, scheme)
    assert torch.equal(soft.rounded().codes, wanted.codes)
    assert torch.allclose(soft(), wanted.dequantize(), atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_what_is_stored_is_what_was_computed_with(scheme: WeightScheme) -> None:
    soft = SignRounding(some(), scheme)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        soft.offset.copy_(torch.rand(soft.offset.shape, generator=draw) - 0.5)
        soft.low.copy_(torch.rand(soft.low.shape, generator=draw) * 0.3 + 0.7)
        soft.high.copy_(torch.rand(soft.high.shape, generator=draw) * 0.3 + 0.7)
    assert torch.allclose(soft.rounded().dequantize(), soft(), atol=1e-5)


def test_gradients_of_integers_are_the_papers() -> None:
    weight = some(4, 32).double().float()
    soft = SignRounding(weight, int_scheme(4, 32))
    direction = torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
    (soft() * direction).sum().backward()
    step = minmax(weight, int_scheme(4, 32)).step
    assert soft.offset.grad is not None and soft.high.grad is not None
    # dŵ/dv is s where nothing is clipped; dŵ/dβ is s' (round(w / s) - w / s) with s' = max w / 15 (equations 3 and 4 with a rounding that
    # passes gradients on).
    codes = quantize(weight, minmax(weight, int_scheme(4, 32)))
    inside = (weight / step + codes.zero.float() > 0) & (weight / step + codes.zero.float() < 15)  # type: ignore[union-attr]
    assert torch.allclose(soft.offset.grad.flatten(1)[inside], (direction * step)[inside], rtol=1e-4)
    left = codes.dequantize() / step - torch.where(inside, weight / step, torch.zeros(()))
    wanted = (direction * left).sum(1) * weight.amax(1) / 15
    assert torch.allclose(soft.high.grad[:, 0], wanted, rtol=1e-3, atol=1e-4)


def test_steps_stay_within_half_a_step_and_clips_within_the_range() -> None:
    soft = SignRounding(some(), int_scheme(4, 32))
    for _ in range(5):
        soft().square().sum().backward()
        sign_step([soft], 0.3)
    assert soft.offset.abs().max() == 0.5 and soft.low.min() >= 0.3 and soft.high.max() <= 1
    assert soft.offset.grad is None


def test_the_space_between_values_is_that_of_the_format() -> None:
    values = torch.tensor([0.2, 1.2, 3.5, 5.0, -5.0, 9.0])
    assert spacing(values, FORMATS["nvfp4"]).tolist() == [0.5, 0.5, 1.0, 2.0, 2.0, 2.0]
    assert spacing(values, FORMATS["int4"]).tolist() == [1.0] * 6
