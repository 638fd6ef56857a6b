"""Statistics of inputs, and the scales that are found from them."""

from __future__ import annotations

import pytest
import torch

from engine.algorithms.awq import awq
from engine.algorithms.gram import Gram, output_error, shrunk
from engine.algorithms.propagate import propagate
from engine.algorithms.smoothquant import smoothquant
from engine.errors import EngineError
from engine.numerics.scheme import int_scheme
from engine.numerics.weights import minmax, quantize


def outliers(count: int = 800, width: int = 64) -> torch.Tensor:
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(2))
    x[:, ::16] *= 30
    return x


def gathered(x: torch.Tensor) -> Gram:
    gram = Gram(x.shape[1])
    gram.add(x)
    return gram


def test_streamed_sums_agree_with_float64_over_many_batches() -> None:
    x = torch.randn(60, 40, 96, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.01, 20, 96) + 2
    gram = Gram(96)
    for batch in x:
        gram.add(batch)
    rows = x.double().reshape(-1, 96)
    assert gram.count == len(rows)
    wanted = rows.T @ rows / len(rows)
    size = wanted.diagonal().sqrt()
    assert ((gram.second.double() - wanted).abs() / (size[:, None] * size)).max() < 1e-6
    assert torch.allclose(gram.mean.double(), rows.mean(0), rtol=1e-5, atol=1e-6)
    assert torch.allclose(gram.mean_magnitude.double(), rows.abs().mean(0), rtol=1e-5)
    assert torch.equal(gram.peak.double(), rows.abs().amax(0))
    assert torch.allclose(gram.moments(centred=True).double(), torch.cov(rows.T, correction=0), rtol=1e-3, atol=1e-3)


def test_padding_is_left_out() -> None:
    x = torch.randn(4, 10, 8)
    keep = torch.arange(10) < torch.tensor([10, 3, 1, 7])[:, None]
    gram = Gram(8)
    gram.add(x, keep)
    assert gram.count == 21 and torch.allclose(gram.xx, x[keep].double().T @ x[keep].double(), atol=1e-5)
    gram.add(torch.full((1, 2, 8), torch.nan), torch.zeros(1, 2, dtype=torch.bool))
    assert gram.count == 21


def test_the_trace_with_the_moments_is_the_error_at_the_output() -> None:
    x, change = outliers(), torch.randn(5, 64)
    assert torch.allclose(output_error(change, gathered(x).second), (x @ change.T).square().mean(0), rtol=1e-4)


def test_drift_is_told_from_the_original_inputs() -> None:
    x, before = torch.randn(30, 4, 16) + 1, torch.randn(30, 4, 16) * 0.3 + 0.5
    gram = Gram(16, drifting=True)
    for now, original in zip(x, before, strict=True):
        gram.add(now, None, now + original)
    rows, off = x.double().reshape(-1, 16), before.double().reshape(-1, 16)
    plain, centred = gram.drift(), gram.drift(centred=True)
    assert plain is not None and centred is not None and gathered(outliers()).drift() is None
    assert torch.allclose(plain.double(), off.T @ rows / 120, atol=1e-5)
    assert torch.allclose(centred.double(), (off - off.mean(0)).T @ (rows - rows.mean(0)) / 120, atol=1e-5)


def test_propagation_gives_the_least_squares_weights_for_the_inputs_that_are_there() -> None:
    before = torch.randn(4000, 16, generator=torch.Generator().manual_seed(1))
    x = before * 0.8 + 0.2 * before.roll(1, 1) + 0.1 * torch.randn(4000, 16, generator=torch.Generator().manual_seed(2))
    w = torch.randn(5, 16)
    gram = Gram(16, drifting=True)
    gram.add(x, None, before)
    drift = gram.drift()
    assert drift is not None
    wanted = torch.linalg.lstsq(x.double(), (before @ w.T).double()).solution.T
    assert torch.allclose(propagate(w, gram.second, drift, 1.0, 0.0).double(), wanted, atol=1e-4)
    assert torch.equal(propagate(w, gram.second, drift, 0.0), w)
    half = propagate(w, gram.second, drift, 0.5, 0.1)
    assert (x @ half.T - before @ w.T).square().mean() < (x @ w.T - before @ w.T).square().mean()


def test_products_of_different_inputs_shrink_with_few_inputs() -> None:
    second = gathered(torch.randn(100, 8)).second
    for count, share in ((80, 0.5), (80_000_000, 1e-6)):
        got = shrunk(second, count)
        assert torch.allclose(got.diagonal(), second.diagonal())
        assert torch.allclose(got[0, 1], second[0, 1] * (1 - share))


def test_inputs_that_are_not_finite_or_not_there_are_refused() -> None:
    with pytest.raises(EngineError, match="NaN or infinity"):
        Gram(4).add(torch.tensor([[1.0, torch.inf, 0, 0]]))
    with pytest.raises(EngineError, match="not empty"):
        _ = Gram(4).second


def test_awq_scales_protect_the_weights_of_large_inputs() -> None:
    x = outliers()
    w = torch.randn(32, 64, generator=torch.Generator().manual_seed(4)) * 0.05
    spec = int_scheme(3, 32)
    scale = awq([w], [spec], gathered(x))
    assert scale[::16].min() > scale[torch.arange(64) % 16 != 0].max()
    scaled = w * scale
    got = ((x / scale) @ quantize(scaled, minmax(scaled, spec)).dequantize().T - x @ w.T).square().mean()
    assert got < 0.5 * (x @ (quantize(w, minmax(w, spec)).dequantize() - w).T).square().mean()


def test_awq_leaves_inputs_alone_where_no_scale_helps() -> None:
    assert torch.equal(awq([torch.ones(8, 64)], [int_scheme(4, 32)], gathered(outliers())), torch.ones(64))


def test_an_input_that_is_always_zero_keeps_its_weights_in_range() -> None:
    x = outliers()
    x[:, 7] = 0
    for scale in (
        awq([torch.randn(8, 64)], [int_scheme(3, 32)], gathered(x)),
        smoothquant([torch.randn(8, 64)], [int_scheme(8, 0)], gathered(x)),
    ):
        assert torch.isfinite(scale).all() and (scale > 0).all()
    assert scale[7] == 1


def dynamic(x: torch.Tensor) -> torch.Tensor:
    """Eight bits, symmetric, a scale for each token."""
    step = x.abs().amax(-1, keepdim=True) / 127
    return (x / step).round() * step


def test_smoothquant_follows_its_equation_and_makes_eight_bit_inputs_accurate() -> None:
    x = outliers()
    w = torch.randn(32, 64, generator=torch.Generator().manual_seed(4)) * 0.05
    more = torch.randn(16, 64) * 0.1
    for alpha in (0.3, 0.5, 0.8):
        wanted = x.abs().amax(0).double() ** alpha / torch.cat([w, more]).abs().amax(0).double() ** (1 - alpha)
        assert torch.allclose(smoothquant([w, more], [], gathered(x), alpha).double(), wanted, rtol=1e-5)
    scale = smoothquant([w], [], gathered(x))
    spec = int_scheme(8, 0, True)
    whole = w * scale
    smooth = dynamic(x / scale) @ quantize(whole, minmax(whole, spec)).dequantize().T
    plain = dynamic(x) @ quantize(w, minmax(w, spec)).dequantize().T
    assert (smooth - x @ w.T).square().mean() < 0.2 * (plain - x @ w.T).square().mean()
