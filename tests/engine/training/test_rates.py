"""Learning rates: a line up, a cosine down."""

from __future__ import annotations

import math

import pytest

from engine.training.schedule import warm_cosine


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_it_rises_in_a_line_and_falls_as_a_cosine(floor: float) -> None:
    rates = [warm_cosine(0.2, 0.1, step, 200, floor) for step in range(200)]
    assert rates[:20] == pytest.approx([0.2 * (i + 1) / 20 for i in range(20)]) and max(rates) == rates[20] == 0.2
    assert rates[110] == pytest.approx(0.2 * (floor + (1 - floor) * 0.5)) and rates[199] < 0.2 * (floor + 1e-3)
    assert rates[65] == pytest.approx(0.2 * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi / 4))))


def test_few_steps_have_rates_too() -> None:
    assert warm_cosine(1.0, 0.0, 0, 1) == 1.0 and warm_cosine(1.0, 1.0, 0, 1) == 1.0
