"""engine/algorithms/patches.py and layer.py against sums over patches that are unfolded one by one in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.algorithms.layer import quantize_layer
from engine.algorithms.patches import HELD, PatchMoments
from engine.algorithms.registry import METHODS
from engine.lowering.graph.conversion import patching_of
from engine.numerics.qtensor import QTensor
from engine.recipe.spec import WeightSpec

GEOMETRIES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (nn.Linear(7, 5), (7,)),
    "linear of tokens": (nn.Linear(7, 5), (3, 7)),
    "1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), (4, 11)),
    "2d": (nn.Conv2d(3, 8, 3, padding=1), (3, 6, 5)),
    "2d strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (4, 7, 6)),
    "2d same": (nn.Conv2d(4, 6, 3, padding="same", dilation=2), (4, 6, 6)),
    "groups": (nn.Conv2d(6, 4, 3, groups=2), (6, 5, 5)),
    "depthwise": (nn.Conv2d(5, 10, 3, padding=1, groups=5), (5, 4, 4)),
    "pointwise": (nn.Conv2d(5, 4, 1), (5, 4, 4)),
    "3d": (nn.Conv3d(2, 4, (2, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1)), (2, 4, 5, 4)),
}


def patches(module: Any, x: np.ndarray) -> np.ndarray:
    """(groups, patches of all items in order, inputs), by loops."""
    if isinstance(module, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    padding = module.padding
    if padding == "same":
        padding = tuple(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
    spans = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    places = [range(0, size - span + 1, s) for size, span, s in zip(x.shape[2:], spans, module.stride, strict=True)]
    found = []
    for item, *corner in itertools.product(range(len(x)), *places):
        cut = tuple(slice(at, at + span, d) for at, span, d in zip(corner, spans, module.dilation, strict=True))
        found.append(x[(item, slice(None), *cut)].reshape(module.groups, -1))
    return np.stack(found, 1)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_moments_are_the_sums_over_all_patches(name: str) -> None:
    module, shape = GEOMETRIES[name]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2 * HELD + 3, *shape, generator=generator)
    moments = PatchMoments(patching_of(module), module.weight[0].numel(), len(x), rows=10**9)
    for part in x.split(5):
        moments.add(part, len(part))
    held = np.arange(len(x)) % HELD == HELD - 1
    wanted = [patches(module, x[torch.from_numpy(which)].double().numpy()) for which in (~held, held)]
    for group, gram in enumerate(moments.grams()):
        seen, unseen = wanted[0][group], wanted[1][group]
        assert gram.count == len(seen)
        np.testing.assert_allclose(gram.xx.numpy(), seen.T @ seen, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(gram.total.numpy(), seen.sum(0), rtol=1e-5, atol=1e-4)
        assert gram.held_back is not None
        np.testing.assert_array_equal(gram.held_back.inputs.numpy(), unseen.astype(np.float32))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_weights_times_patches_are_the_layers_output(name: str) -> None:
    module, shape = GEOMETRIES[name]
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    rows = patches(module, x.double().numpy())
    weight = module.weight.detach().double().numpy().reshape(len(rows), -1, rows.shape[2])
    bias = module.bias.detach().double()
    with torch.no_grad():
        wanted = module.double()(x.double())
    module.float()
    wanted = wanted - (bias if isinstance(module, nn.Linear) else bias.reshape(-1, *[1] * (len(shape) - 1)))
    flat = wanted.reshape(-1, 5) if isinstance(module, nn.Linear) else wanted.flatten(2).transpose(1, 2).flatten(0, 1)
    got = np.concatenate([part @ weight[group].T for group, part in enumerate(rows)], 1)
    np.testing.assert_allclose(got, flat.numpy(), atol=1e-9)


def test_of_many_positions_as_many_are_taken_as_are_asked_for_and_always_the_same() -> None:
    module = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(32, 3, 20, 20, generator=torch.Generator().manual_seed(2))

    def gathered(at_once: int, seed: int = 0) -> PatchMoments:
        moments = PatchMoments(patching_of(module), 27, len(x), rows=640, seed=seed)
        for part in x.split(at_once):
            moments.add(part, len(part))
        return moments

    one, other, third = gathered(4), gathered(32), gathered(4, seed=1)
    (a,), (b,), (c,) = one.grams(), other.grams(), third.grams()
    assert a.held_back is not None
    assert a.count + len(a.held_back.inputs) == 640 and b.count == a.count
    torch.testing.assert_close(a.xx, b.xx)
    assert not torch.allclose(a.xx, c.xx)
    exact = PatchMoments(patching_of(module), 27, len(x), rows=10**9)
    exact.add(x, len(x))
    (every,) = exact.grams()
    # Moments of n independent inputs of variance 1 are off by about 27 / sqrt(n).
    assert torch.linalg.norm(a.second - every.second) < 1.5 * 27 / a.count**0.5


def moments_of(module: Any, x: Tensor) -> PatchMoments:
    moments = PatchMoments(patching_of(module), module.weight[0].numel(), len(x))
    moments.add(x, len(x))
    return moments


def error(module: Any, rounded: QTensor, shift: Tensor | None, x: Tensor) -> float:
    """Of the layer's output on ``x``, in float64."""
    with torch.no_grad():
        wanted = module.double()(x.double())
        copy: Any = module.double()
        before, bias = copy.weight.clone(), copy.bias.clone()
        copy.weight.copy_(rounded.dequantize().double())
        copy.bias.add_(0 if shift is None else shift.double())
        got = copy(x.double())
        copy.weight.copy_(before)
        copy.bias.copy_(bias)
        module.float()
    return float((wanted - got).square().sum())


@pytest.mark.parametrize("name", ["linear of tokens", "1d", "2d", "groups", "depthwise", "3d"])
@pytest.mark.parametrize("spec", [WeightSpec(4), WeightSpec(3, "per-tensor"), WeightSpec(2, "per-group", 4), WeightSpec(8)], ids=str)
def test_gptq_leaves_no_more_error_at_the_output_than_rounding_to_nearest(name: str, spec: WeightSpec) -> None:
    module, shape = GEOMETRIES[name]
    generator = torch.Generator().manual_seed(3)
    # Neighbouring values are alike, as those of images are.
    x = torch.randn(64, *shape, generator=generator).cumsum(-1) + 1
    grams = moments_of(module, x).grams()
    weight = module.weight.detach()
    found = quantize_layer(weight, spec, METHODS["gptq"], grams, has_bias=True)
    plain = {name: quantize_layer(weight, spec, METHODS[name], (), has_bias=True) for name in ("nearest", "mse")}
    held = x[torch.arange(len(x)) % HELD == HELD - 1]
    assert found.note is not None and "held back" in found.note
    for other in plain.values():
        assert error(module, found.weight, found.shift, held) <= 1.0001 * error(module, other.weight, None, held)
    assert found.weight.shape == weight.shape and found.weight.integers().abs().max() <= 128
    assert (found.weight.multiplier is not None) == (spec.granularity == "per-group")


def test_what_is_fitted_to_other_inputs_than_it_is_judged_on_falls_back_and_says_so() -> None:
    torch.manual_seed(0)
    module = nn.Linear(32, 24)
    x = torch.randn(512, 4) @ torch.randn(4, 32) + 0.01 * torch.randn(512, 32)
    x[HELD - 1 :: HELD] = torch.randn(64, 32)
    found = quantize_layer(module.weight.detach(), WeightSpec(4), METHODS["gptq"], moments_of(module, x).grams(), has_bias=False)
    assert found.note is not None and found.note.startswith("rounded to nearest on ") and "with GPTQ" in found.note


def test_a_layer_that_no_item_reached_is_rounded_to_nearest_and_says_so() -> None:
    weight = torch.randn(4, 8)
    found = quantize_layer(weight, WeightSpec(4), METHODS["gptq"], (), has_bias=True)
    assert found.note == "no calibration item reached it: rounded to nearest" and found.shift is None
