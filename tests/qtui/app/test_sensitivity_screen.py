"""The layers that hurt: estimates, the line under the worst, and the plan that follows from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from app_driving import Driver, drive
from scripted_engine import LAYERS, ScriptedEngine, estimates
from snapshots import check_svg, check_text
from test_strategy_screen import draft, planned, said

from engine.events import event as ev
from engine.recipe.decisions import Sensitive
from qtui.screens.sensitivity import SensitivityScreen
from qtui.screens.sensitivity_rows import rank
from qtui.screens.strategy import StrategyScreen
from qtui.widgets.table import Grid


async def ranked(d: Driver) -> Grid:
    await planned(d)
    await d.press("e")
    await d.until(lambda state: state.run.sensitivity is not None and state.asking == "quantize")
    await d.pilot.pause()
    assert isinstance(d.app.screen, SensitivityScreen)
    return d.app.screen.query_one(Grid)


def test_the_worst_layer_comes_first_and_the_line_makes_a_plan_that_can_be_undone(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        grid = await ranked(d)
        before = draft(d)
        assert grid.rows[0].key == "fc1" == grid.cursor
        assert "fc1 does" in said_over(d) and "w8 would help" in said_over(d) and "+ draws the line" in d.text
        await d.press("plus", "plus", "minus")
        assert "worst 1 in 8 bits: " in d.text and "harm −" in d.text
        check_text(d, "sensitivity")
        check_svg(d, "sensitivity")
        await d.press("enter")
        assert isinstance(d.app.screen, StrategyScreen) and "The plan has the cure" in said(d)
        assert draft(d).specs["fc1"].weights.bits == 8 and draft(d).specs["conv1"] == before.specs["conv1"]
        await d.press("u")
        assert draft(d).specs == before.specs

    drive(ScriptedEngine(tmp_path), script)


def test_fp32_is_the_other_cure_and_the_cursor_draws_the_line(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        grid = await ranked(d)
        await d.press("down", "space", "c")
        two = [row.key for row in grid.rows[:2]]
        assert "worst 2 in fp32" in d.text
        await d.press("n")
        assert all(draft(d).specs[path].weights is None for path in two)

    drive(ScriptedEngine(tmp_path), script)


def test_what_was_measured_stands_beside_the_estimate(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        grid = await ranked(d)
        await d.press("m")
        await d.until(lambda state: state.run.sensitivity is not None and state.run.sensitivity.measured and state.asking == "quantize")
        await d.pilot.pause()
        assert d.engine.answers["quantize"] == Sensitive((("fc1", "w4"), ("fc1", "a8")))
        at = next(place for place, column in enumerate(grid.columns) if column.key == "drop")
        assert grid.rows[0].cells[at].text == "1.09" and "1 measured" in d.text

    drive(ScriptedEngine(tmp_path), script, (120, 30))


def test_nothing_is_taken_with_the_line_above_all_layers_and_esc_goes_back(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await ranked(d)
        before = draft(d)
        await d.press("minus", "enter")
        assert isinstance(d.app.screen, SensitivityScreen) and "The line is above all layers" in d.text
        await d.press("escape")
        assert isinstance(d.app.screen, StrategyScreen) and draft(d) is before

    drive(ScriptedEngine(tmp_path), script)


def test_the_strategy_tells_the_noise_before_anything_is_run(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await ranked(d)
        await d.press("escape", "down", "down")
        # conv2 has 48 dB at 8 bits and 36 at the next narrower.
        assert re.search(r"w int6, −[\d.]+ kB, 36 dB", said(d))
        await d.press("W")
        assert "alone" in d.text and "24 dB" in d.text and "12 dB" in d.text

    drive(ScriptedEngine(tmp_path), script)


@pytest.mark.parametrize("cut", [0, 1, 2, 4, 99])
def test_the_more_layers_are_cured_the_less_harm_is_left(tmp_path: Path, cut: int) -> None:
    from qtui.draft import Draft

    plan = ev.Planned(LAYERS, "default", 8, 2_000_000)
    ranking = rank(Draft.of(plan), estimates(), cut, "w8a8")
    fewer = rank(Draft.of(plan), estimates(), max(cut - 1, 0), "w8a8")
    assert ranking.left <= fewer.left <= ranking.total
    assert ranking.cut == min(cut, len(ranking.layers))


def said_over(d: Driver) -> str:
    from qtui.widgets.sentence import Sentence

    return d.app.screen.query_one(Sentence).text
