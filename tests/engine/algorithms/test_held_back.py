"""Rounding is judged on calibration text that it has not seen, against rounding to nearest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.algorithms.gram import Gram, HeldBack
from engine.algorithms.matrix import quantize_matrix
from engine.algorithms.registry import METHODS
from engine.lowering.modules.capture import Batch
from engine.lowering.modules.statistics import MOST, held_back
from engine.numerics.scheme import int_scheme
from engine.numerics.weights import WeightQParams, minmax, quantize

SPEC = int_scheme(4, 0, True)


def inputs(seen: torch.Tensor, unseen: torch.Tensor | None) -> Gram:
    gram = Gram(seen.shape[1])
    gram.add(seen)
    gram.held_back = None if unseen is None else HeldBack(unseen)
    return gram


@pytest.mark.parametrize("bias", [False, True])
def test_gptq_that_is_worse_than_nearest_on_other_text_is_not_kept_and_says_so(bias: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 32)
    # What it is fitted to has another correlation than the text that it is judged on.
    seen, unseen = torch.randn(400, 4) @ torch.randn(4, 32) + 0.01 * torch.randn(400, 32), torch.randn(400, 32)
    alone = quantize_matrix(weight, SPEC, METHODS["gptq"], inputs(seen, None), bias)
    judged = quantize_matrix(weight, SPEC, METHODS["gptq"], inputs(seen, unseen), bias)
    assert alone.note is None and judged.note is not None and judged.note.startswith("rounded to nearest on the ")

    def error(of: torch.Tensor) -> float:
        return float(((weight - of).double() @ unseen.double().T).square().mean())

    nearest = [quantize(weight, grid).dequantize() for grid in (WeightQParams.of(alone.weight), minmax(weight, SPEC))]
    held = judged.weight.dequantize()
    assert error(held) < error(alone.weight.dequantize()) and any(torch.equal(held, one) for one in nearest)
    if not bias:
        assert error(held) == min(map(error, nearest))


def test_gptq_that_is_better_on_other_text_is_kept_as_it_was() -> None:
    torch.manual_seed(0)
    weight, mixing = torch.randn(24, 32), torch.randn(32, 32)
    seen, unseen = (torch.randn(2000, 32) @ mixing for _ in range(2))
    alone, judged = (quantize_matrix(weight, SPEC, METHODS["gptq"], inputs(seen, some), False) for some in (None, unseen))
    assert torch.equal(alone.weight.codes, judged.weight.codes) and judged.note is None


def test_the_error_is_that_of_the_layer_with_its_bias_and_its_original_inputs() -> None:
    torch.manual_seed(0)
    weight, rounded, shift = torch.randn(5, 7), torch.randn(5, 7), torch.randn(5)
    x, x0 = torch.randn(11, 7), torch.randn(11, 7)
    signal, error = HeldBack(x, x0).errors(weight, rounded, shift)
    wanted = sum(float((weight @ b - rounded @ a - shift).square().sum()) for a, b in zip(x, x0, strict=True))
    assert error == pytest.approx(wanted, rel=1e-5) and signal == pytest.approx(float((x0 @ weight.T).square().sum()), rel=1e-5)


def test_an_eighth_of_the_text_is_held_back_up_to_what_tells_enough() -> None:
    batches = [Batch(torch.zeros(6, 16, 4), None) for _ in range(4)]
    masks = torch.cat(held_back(batches))
    assert masks.all(1).nonzero().flatten().tolist() == [7, 15, 23] and masks.any(1).sum() == 3
    few = torch.cat(held_back([replace(batches[0])]))
    assert few.sum(1).tolist() == [2] * 6 and few[:, 14:].all()
    long = torch.cat(held_back([Batch(torch.zeros(64, 1024, 1), None)]))
    assert int(long.sum()) == MOST
