"""The microscope: one layer before and after rounding, its channels, and what it reads."""

from __future__ import annotations

from pathlib import Path

from app_driving import Driver, drive
from scripted_engine import ScriptedEngine
from snapshots import check_svg, check_text
from test_strategy_screen import draft, planned, said

from engine.recipe.spec import LayerSpec, WeightSpec
from qtui.drawing.microscope import channels, rounding
from qtui.drawing.spans import plain
from qtui.screens.microscope import ReportMicroscope, StrategyMicroscope


def texts(lines: list[list[tuple[str, str]]]) -> list[str]:
    return [plain(line) for line in lines]


def test_levels_of_the_grid_stand_under_each_other_before_and_after() -> None:
    before = (-1.0, 2 / 64, [1] * 64)
    after = (-1.0, 2 / 64, [8 if i % 16 == 8 else 0 for i in range(64)])
    drawn = texts(rounding(before, after, (-0.75, -0.25, 0.25, 0.75), 72, 8))
    assert [len(line) for line in drawn] == [72] * 8
    axis = next(line for line in drawn if "┴" in line)
    ticks = {x for x, char in enumerate(axis) if char == "┴"}
    spikes = {x for x, char in enumerate(drawn[-2]) if char == "█"}
    assert len(ticks) == len(spikes) == 4 and all(min(abs(x - t) for t in ticks) <= 1 for x in spikes)
    assert drawn[-1].strip().startswith("-end") and drawn[-1].rstrip().endswith("grid's end")


def test_channels_that_stand_out_have_the_colour_of_harm() -> None:
    lines = channels((-2.0, -0.5, -0.4), (2.0, 0.5, 0.4), 0.5, 1.0, 60, 4)
    roles = {role for line in lines for text, role in line if text.strip()}
    assert {"harm", "bar", "axis"} <= roles
    assert plain(lines[0]).lstrip().startswith("2") and len(lines) == 4


def test_nothing_and_no_room_are_said() -> None:
    assert "no weights" in "".join(texts(rounding((0.0, 1.0, [0]), (0.0, 1.0, [0]), (), 60, 8)))
    assert "no channels" in "".join(texts(channels((), (), 0.0, 0.0, 60, 4)))
    assert [len(line) for line in texts(rounding((0.0, 1.0, [1]), (0.0, 1.0, [1]), (), 10, 3))] == [10] * 3


def test_a_layer_is_looked_at_as_the_draft_has_it_and_its_neighbours_after_it(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("down", "down", "w")
        wanted = draft(d).specs["conv2"]
        await d.press("i")
        await d.until(lambda state: "conv2" in state.run.inspected and state.asking == "quantize")
        await d.pilot.pause()
        assert isinstance(d.app.screen, StrategyMicroscope)
        assert d.state.run.inspected["conv2"].spec == wanted
        assert "conv2 ─ weights ─ w6" in d.text and "1 stands out" in d.text and "7 (-2.00…2.00)" in d.text
        check_text(d, "microscope")
        check_svg(d, "microscope")
        await d.press("right")
        await d.until(lambda state: "fc1" in state.run.inspected)
        await d.pilot.pause()
        assert "fc1 ─ weights" in d.text
        await d.press("right", "right")
        assert "last layer" in d.text
        await d.press("escape")
        assert draft(d).specs["conv2"] == wanted and "Strategy" in d.text

    drive(ScriptedEngine(tmp_path), script)


def test_a_layer_that_is_kept_in_fp32_is_looked_at_as_it_was_proposed(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("down", "f", "i")
        await d.until(lambda state: "conv1" in state.run.inspected)
        assert d.state.run.inspected["conv1"].spec.weights == WeightSpec(8, "per-channel")

    drive(ScriptedEngine(tmp_path), script)


def test_a_module_has_no_weights_to_look_at(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("i")
        assert "a module has none" in said(d)

    drive(ScriptedEngine(tmp_path), script)


def test_the_report_shows_what_was_kept(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.press("n")
        await d.until(lambda state: state.asking == "qat")
        d.app.session.answer(False)
        await d.until(lambda state: state.run.report is not None or state.run.finished is not None)
        d.app.go("report")
        await d.on("report")
        await d.pilot.pause()
        await d.press("I")
        assert isinstance(d.app.screen, ReportMicroscope), d.text
        assert "weights ─ w" in d.text and "what it reads ─" in d.text
        await d.resize(160, 48)
        check_text(d, "microscope-report")
        await d.press("escape")

    drive(ScriptedEngine(tmp_path), script)


def test_a_spec_without_weights_is_no_look() -> None:
    from qtui.screens.microscope_words import same

    assert not same(None, LayerSpec())
