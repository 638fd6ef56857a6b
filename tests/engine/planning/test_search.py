"""The integer linear programme against every plan there is."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from engine.planning.search import Choice, Item, Limits, Selection, front, selected, solve
from engine.recipe.spec import LayerSpec, WeightSpec

WIDTHS = (8, 6, 4, 3, 2)


def items(seed: int, layers: int = 6) -> tuple[Item, ...]:
    """Layers with harms over nine orders of magnitude, and sizes in bytes that are no multiples of each other."""
    rng = random.Random(seed)
    found = []
    for number in range(layers):
        weights = rng.randint(50, 5000)
        base = 10 ** rng.uniform(-9, -1)
        choices = tuple(
            Choice(
                LayerSpec(WeightSpec(bits)), base * 4.0 ** (8 - bits) * rng.uniform(0.5, 2), bits * weights // 8 - 4 * weights + 37,
                bits * weights // 8 + 37, rng.uniform(0.1, 2),
            )
            for bits in WIDTHS
        )  # fmt: skip
        found.append(Item(f"layer{number}", choices, weights))
    return tuple(found)


def every(several: tuple[Item, ...]) -> list[Selection]:
    return [selected(several, places) for places in itertools.product(*(range(len(item.choices)) for item in several))]


def least(plans: list[Selection], within: Callable[[Selection], bool]) -> float | None:
    return min((plan.harm for plan in plans if within(plan)), default=None)


@pytest.mark.parametrize("seed", range(5))
def test_the_plan_of_least_harm_within_a_limit_is_that_of_all_plans(seed: int) -> None:
    several, rng = items(seed), random.Random(seed + 100)
    plans = every(several)
    sizes, times = sorted(plan.file_bytes for plan in plans), sorted(plan.ms or 0 for plan in plans)
    for _ in range(4):
        size, bits, ms = rng.choice(sizes), rng.uniform(2.2, 8), rng.choice(times)
        for limits, within in (
            (Limits(file_bytes=size), lambda plan, size=size: plan.file_bytes <= size),
            (Limits(bits_per_weight=bits), lambda plan, bits=bits: plan.bits_per_weight <= bits),
            (Limits(ms=ms), lambda plan, ms=ms: plan.ms <= ms),
            (Limits(file_bytes=size, ms=ms), lambda plan, size=size, ms=ms: plan.file_bytes <= size and plan.ms <= ms),
        ):
            wanted, found = least(plans, within), solve(several, limits)
            if wanted is None:
                assert found is None
            else:
                assert found is not None and within(found)
                assert found.harm == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_smallest_plan_of_so_much_harm_is_that_of_all_plans(seed: int) -> None:
    several = items(seed)
    plans = every(several)
    harm = sorted(plan.harm for plan in plans)[len(plans) // 3]
    found = solve(several, Limits(harm=harm), lambda choice: choice.file_bytes)
    assert found is not None and found.harm <= harm * (1 + 1e-6)
    assert found.file_bytes == min(plan.file_bytes for plan in plans if plan.harm <= harm)


def test_no_plan_of_the_front_is_worse_than_another_in_both() -> None:
    several = items(7, 5)
    plans, found = every(several), front(several, 12)
    assert len(found) > 3
    for plan in found:
        assert not any(p.file_bytes <= plan.file_bytes and p.harm < plan.harm * (1 - 1e-5) for p in plans)
    assert [p.file_bytes for p in found] == sorted(p.file_bytes for p in found)
    assert [p.harm for p in found] == sorted((p.harm for p in found), reverse=True)


def test_there_is_no_plan_smaller_than_the_smallest() -> None:
    several = items(1)
    assert solve(several, Limits(file_bytes=min(p.file_bytes for p in every(several)) - 1)) is None
    assert solve((), Limits()) is None and front(()) == ()
