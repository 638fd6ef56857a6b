"""The budget of the strategy: limits as they are typed, the strip of plans, and what taking one changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_driving import Driver, drive
from scripted_engine import ScriptedEngine
from snapshots import check_svg, check_text
from test_strategy_screen import draft, planned, said

from engine.recipe.decisions import Sensitive
from engine.recipe.targets import Target
from engine.tasks.metrics import ACCURACY, Metric
from qtui.budget import limit_of
from qtui.widgets.budget_strip import BudgetStrip

PERPLEXITY = Metric("perplexity", higher_is_better=False, relative=True)


@pytest.mark.parametrize(
    ("typed", "target"),
    [
        ("0.20 MB", Target("size", 200_000.0, "B")), ("350kB", Target("size", 350_000.0, "B")), ("20 %", Target("size", 0.2)),
        ("4.5 bpw", Target("bpw", 4.5)), ("2 ms", Target("latency", 2.0, "ms")), ("0.5 points", Target("drop", 0.005)),
        ("1,000 B", Target("size", 1000.0, "B")),
    ],
)  # fmt: skip
def test_a_limit_is_a_number_and_its_unit(typed: str, target: Target) -> None:
    assert limit_of(typed, ACCURACY) == target


def test_points_of_a_relative_metric_are_per_cent() -> None:
    assert limit_of("0.5 points", PERPLEXITY) == Target("drop", 0.005)


@pytest.mark.parametrize("typed", ["0.2", "MB", "-3 MB", "200 %", "99 bpw", "1 parsec"])
def test_what_is_no_limit_is_said(typed: str) -> None:
    assert isinstance(limit_of(typed, ACCURACY), str)
    assert limit_of("  ", ACCURACY) is None


async def opened(d: Driver) -> BudgetStrip:
    await planned(d)
    await d.press("P")
    strip = d.app.screen.query_one(BudgetStrip)
    await d.until(lambda _: strip.front is not None)
    await d.pilot.pause()
    return strip


async def typed(d: Driver, strip: BudgetStrip, text: str) -> None:
    before = strip.chosen
    await d.press(*(" ".join(text).replace("  ", " space ").replace(".", "full_stop").split()))
    await d.until(lambda _: strip.chosen is not before)


def test_left_and_right_walk_along_the_plans_and_enter_takes_one(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        strip = await opened(d)
        assert isinstance(d.engine.asked[-1], Sensitive) or strip.front is not None
        before = draft(d)
        assert strip.front is not None and len(strip.front.plans) > 2
        harms = [plan.harm for plan in strip.front.plans]
        assert harms == sorted(harms, reverse=True), "larger plans do less harm"
        await d.press("left")
        assert strip.chosen is not None and strip.chosen.bytes < before.predicted_bytes
        assert draft(d) is before, "what is looked at is not yet the draft"
        assert "layers change: " in said(d) or "layer changes: " in said(d)
        check_text(d, "strategy-budget")
        check_svg(d, "strategy-budget")
        chosen = strip.chosen.draft.specs
        await d.press("enter")
        assert draft(d).specs == chosen and not strip.display and "u takes it back" in said(d)
        await d.press("u")
        assert draft(d).specs == before.specs

    drive(ScriptedEngine(tmp_path), script)


def test_a_limit_that_is_typed_is_kept(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        strip = await opened(d)
        await typed(d, strip, "0.30 MB")
        assert strip.chosen is not None and strip.chosen.bytes <= 300_000
        assert "limit 0.30 MB" in str(strip.border_subtitle)
        for _ in "0.30 MB":
            await d.press("backspace")
        await typed(d, strip, "4.2 bpw")
        assert strip.chosen.bits_per_weight <= 4.2
        await d.press("escape", "escape")
        assert not strip.display and d.app.screen.focused is not strip

    drive(ScriptedEngine(tmp_path), script)


def test_points_are_measured_first(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        strip = await opened(d)
        await typed(d, strip, "0.9 points")
        found = d.state.run.sensitivity
        assert found is not None and found.measured and strip.chosen is not None
        assert "about 0." in said(d) and "points" in said(d)

    drive(ScriptedEngine(tmp_path), script)


def test_marked_layers_stay_as_they_are(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("down", "space", "P")
        strip = d.app.screen.query_one(BudgetStrip)
        await d.until(lambda _: strip.front is not None)
        marked = next(iter(draft(d).marked))
        assert strip.front is not None and strip.front.plans
        assert all(plan.draft.specs[marked] == draft(d).specs[marked] for plan in strip.front.plans)

    drive(ScriptedEngine(tmp_path), script)


def test_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        strip = await opened(d)
        await d.press(*"1", "space", *"kB")
        await d.until(lambda _: "No plan is so small" in said(d))
        assert strip.chosen is None

    drive(ScriptedEngine(tmp_path), script)
