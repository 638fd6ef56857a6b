"""Weights that learn: simulated as they are stored, with the gradients of an independent construction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.lowering.modules.latent import MARGIN, Latent
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import WeightScheme, int_scheme
from engine.numerics.weights import minmax, quantize

SPECS = [int_scheme(3, 8), int_scheme(4, 8, True), int_scheme(4, 5), int_scheme(8, 0, True)]


def weight() -> Tensor:
    return torch.randn(6, 24, generator=torch.Generator().manual_seed(0))


def rounded(spec: WeightScheme) -> QTensor:
    return quantize(weight(), minmax(weight(), spec))


def moved(latent: Latent) -> Latent:
    draw = torch.Generator().manual_seed(1)
    latent.place.data += torch.randn(latent.place.shape, generator=draw)
    latent.growth.data += 0.2 * torch.randn(latent.growth.shape, generator=draw)
    return latent


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_it_begins_as_what_it_was_to_the_bit(spec: WeightScheme) -> None:
    start = rounded(spec)
    latent = Latent(start)
    assert torch.equal(latent.stored().codes, start.codes) and torch.equal(latent.stored().scale, start.scale)
    assert torch.equal(latent(), start.dequantize())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_what_is_simulated_is_what_is_stored(spec: WeightScheme) -> None:
    latent = moved(Latent(rounded(spec)))
    stored = latent.stored()
    assert torch.equal(latent(), stored.dequantize()) and stored.scale.dtype == torch.float16
    assert not torch.equal(stored.codes, rounded(spec).codes) and not torch.equal(stored.scale, rounded(spec).scale)
    assert int(stored.codes.min()) >= spec.low and int(stored.codes.max()) <= spec.high


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_gradients_are_those_of_the_values_with_the_rounding_passed_through(spec: WeightScheme) -> None:
    """The reference is float64 autograd on ``scale * exp(growth) * (integers - zero)`` with the integers as the variable."""
    latent = moved(Latent(rounded(spec)))
    pull = torch.randn(6, 24, generator=torch.Generator().manual_seed(2))
    (latent() * pull).sum().backward()
    stored = latent.stored()
    integers = stored.codes.double().requires_grad_()
    growth = torch.zeros_like(stored.scale, dtype=torch.float64, requires_grad=True)
    size = spec.size(24)
    zero = torch.zeros(6, 1) if stored.zero is None else stored.zero.double().repeat_interleave(size, 1)[:, :24]
    step = (stored.scale.double() * growth.exp()).repeat_interleave(size, 1)[:, :24]
    (step * (integers - zero) * pull).sum().backward()
    assert torch.allclose(latent.place.grad.double(), integers.grad, rtol=1e-5, atol=1e-7)  # type: ignore[union-attr,arg-type]
    assert torch.allclose(latent.growth.grad.double(), growth.grad, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr,arg-type]


def test_places_come_back_to_the_grid() -> None:
    latent = Latent(rounded(int_scheme(4, 8, True)))
    latent.place.data *= 100
    latent.bound()
    found = latent.place.detach()
    assert float(found.min()) == pytest.approx(-8 - MARGIN) and float(found.max()) == pytest.approx(7 + MARGIN)
