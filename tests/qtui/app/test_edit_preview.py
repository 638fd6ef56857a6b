"""What each layer costs, told on the strategy before anything is run: estimated beside the question, which any answer ends."""

from __future__ import annotations

from pathlib import Path

from app_driving import Driver, drive
from scripted_engine import Gate, ScriptedEngine
from snapshots import check_text
from test_strategy_screen import draft, planned

from qtui.screens.sensitivity import SensitivityScreen
from qtui.widgets.table import Grid


def noise(d: Driver, path: str) -> str:
    grid = d.app.screen_stack[0].query_one("#strategy", Grid)
    index = [column.key for column in grid.columns].index("noise")
    cell = next(row for row in grid.rows if row.key == path).cells[index]
    return cell if isinstance(cell, str) else cell.text


def test_each_row_tells_its_noise_and_that_of_fewer_bits_without_being_asked(tmp_path: Path) -> None:
    gate = Gate("estimate")

    async def script(d: Driver) -> None:
        await planned(d)
        await d.until(lambda _: d.app.session.estimating)
        assert gate.reached.wait(10)
        await d.until(lambda state: state.run.phase == "sensitivity")
        # The question stays open, and a layer can be edited meanwhile.
        assert d.state.asking == "quantize" and noise(d, "fc1") == "…"
        await d.press("j", "w")
        gate.opened.set()
        await d.until(lambda state: state.run.sensitivity is not None and not d.app.session.estimating)
        assert d.state.asking == "quantize"
        # 6 dB a bit for weights; activations of 8 bits add noise at 40 dB: -10 log10(10^-2.4 + 10^-4).
        assert noise(d, "fc1") == "24→18" and noise(d, "fc2") == "39→35"
        check_text(d, "strategy-noise")

    drive(ScriptedEngine(tmp_path, gates=[gate]), script, estimates=True)


def test_an_edit_changes_the_noise_at_once(tmp_path: Path) -> None:
    async def script(d: Driver) -> None:
        await planned(d)
        await d.until(lambda state: state.run.sensitivity is not None)
        grid = d.app.screen.query_one("#strategy", Grid)
        grid.move_to("fc1")
        await d.press("w")
        assert draft(d).specs["fc1"].weights.bits == 3 and noise(d, "fc1") == "18→12"
        await d.press("slash", *"est<20", "enter")
        await d.pilot.pause()
        assert "fc1" in d.text and "conv2" not in d.text

    drive(ScriptedEngine(tmp_path), script, estimates=True)


def test_who_goes_on_does_not_wait_for_the_estimate(tmp_path: Path) -> None:
    gate = Gate("estimate")

    async def script(d: Driver) -> None:
        await planned(d)
        assert gate.reached.wait(10)
        await d.press("n")
        await d.until(lambda state: state.asking == "qat")
        assert d.engine.answers["quantize"] is True and d.state.run.sensitivity is None
        assert d.state.run.measured["ptq"] and not d.state.problem

    drive(ScriptedEngine(tmp_path, gates=[gate]), script, estimates=True)


def test_a_layer_under_the_microscope_comes_first_and_the_estimate_begins_again(tmp_path: Path) -> None:
    gate = Gate("estimate")

    async def script(d: Driver) -> None:
        await planned(d)
        assert gate.reached.wait(10)
        d.app.screen.query_one("#strategy", Grid).move_to("conv2")
        await d.press("i")
        await d.until(lambda state: "conv2" in state.run.inspected)
        await d.press("escape")
        gate.opened.set()
        await d.until(lambda state: state.run.sensitivity is not None and state.asking == "quantize")
        assert d.engine.estimates == 2

    drive(ScriptedEngine(tmp_path, gates=[gate]), script, estimates=True)


def test_the_screen_of_the_estimate_tells_how_far_it_is(tmp_path: Path) -> None:
    gate = Gate("estimate")

    async def script(d: Driver) -> None:
        await planned(d)
        assert gate.reached.wait(10)
        await d.press("e")
        assert isinstance(d.app.screen, SensitivityScreen)
        assert "Estimating what each layer costs" in d.text
        gate.opened.set()
        await d.until(lambda state: state.run.sensitivity is not None)
        await d.pilot.pause()
        assert "fc1" in d.text
        assert d.engine.estimates == 1

    drive(ScriptedEngine(tmp_path, gates=[gate]), script, estimates=True)


def test_a_stop_ends_the_estimate_too(tmp_path: Path) -> None:
    gate = Gate("estimate")

    async def script(d: Driver) -> None:
        await planned(d)
        assert gate.reached.wait(10)
        d.app.session.stop()
        await d.until(lambda state: state.job is None)
        assert d.state.run.stopped and not d.app.session.estimating

    drive(ScriptedEngine(tmp_path, gates=[gate]), script, estimates=True)
