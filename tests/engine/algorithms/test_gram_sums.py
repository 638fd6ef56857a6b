"""Sums over batches are the same bits in whatever order, and by whomever, the batches are added up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.algorithms import gram as gram_module
from engine.algorithms.gram import Gram, add_product
from engine.algorithms.patches import Patching, PatchMoments


def batches(count: int, width: int) -> list[torch.Tensor]:
    """Of unlike sizes: the largest is a thousand times the smallest."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(37, width, generator=generator) * 10 ** (3 * index / count) + 0.3 for index in range(count)]


def test_the_order_of_batches_leaves_every_bit_of_the_sums_as_it_is() -> None:
    texts = batches(40, 24)
    grams = []
    for order in (range(40), reversed(range(40)), torch.randperm(40, generator=torch.Generator().manual_seed(5)).tolist()):
        gram = Gram(24, drifting=True)
        for index in order:
            gram.add(texts[index], None, texts[index] * 1.01)
        grams.append(gram)
    for name in ("xx", "cross", "total", "magnitude", "moved"):
        first, *others = (getattr(gram, name) for gram in grams)
        assert all(torch.equal(first, other) for other in others), name
    # In float32 they are not: the test would tell.
    products = [x.T @ x for x in texts]
    forward, backward = (torch.zeros(24, 24) for _ in range(2))
    for one, other in zip(products, reversed(products), strict=True):
        forward += one
        backward += other
    assert not torch.equal(forward, backward)


def test_parts_that_several_have_gathered_come_to_the_sums_of_one() -> None:
    texts = batches(21, 16)
    whole, parts = Gram(16), [Gram(16) for _ in range(3)]
    for index, x in enumerate(texts):
        whole.add(x)
        parts[index % 3].add(x)
    for name in ("xx", "total", "magnitude"):
        assert torch.equal(sum(getattr(part, name) for part in parts), getattr(whole, name))


def test_the_order_of_items_leaves_the_sums_over_patches_as_they_are() -> None:
    texts = batches(12, 10)
    found = []
    for order in (range(12), reversed(range(12))):
        moments = PatchMoments(Patching(), 10, 37 * 12, rows=10**9)
        for index in order:
            # What is held back goes by places: without it all rows count.
            moments._sum(texts[index][None])
        found.append(moments)
    assert torch.equal(found[0].xx, found[1].xx) and torch.equal(found[0].sums, found[1].sums)


@pytest.mark.parametrize("leading", [(), (3,)])
def test_products_are_those_of_float64_to_the_last_places_of_float32(leading: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram_module, "STRIP", 7)
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(*leading, 50, width, generator=generator) for width in (18, 11))
    total = torch.ones(*leading, 18, 11, dtype=torch.float64)
    add_product(total, left, right)
    wanted = 1 + np.swapaxes(left.double().numpy(), -1, -2) @ right.double().numpy()
    np.testing.assert_allclose(total.numpy(), wanted, rtol=0, atol=1e-5)
