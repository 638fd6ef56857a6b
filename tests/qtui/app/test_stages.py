"""A screen is its file and one line of the registry; everything else follows from that line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from app_driving import Driver, drive
from counting_screen import COUNT
from scripted_engine import ScriptedEngine
from textual.widgets import Input

from engine.events import event as ev
from qtui import actions, messages, reasons, stages
from qtui.reducer import reduce
from qtui.screens.palette import Palette
from qtui.state import Job, Run, State
from qtui.widgets.table import Grid


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry with one line more, in its middle."""
    known = stages.REGISTRY
    monkeypatch.setattr(stages, "REGISTRY", (*known[:3], COUNT, *known[3:]))


async def planned(app: Driver) -> None:
    await app.press("n")
    await app.until(lambda state: state.asking == "optimize")
    await app.press("n")
    await app.until(lambda state: state.asking == "quantize")


@pytest.mark.usefixtures("counted")
def test_a_new_screen_is_reached_by_its_digit_and_the_stage_bar_shows_it(runs: Path) -> None:
    async def script(app: Driver) -> None:
        assert "Strategy ─ ○ Count ─ ○ Calibrate" in app.text.splitlines()[0]
        await app.press("4")
        assert "There is nothing to count yet" in app.text
        await planned(app)
        await app.press("4")
        await app.on("count")
        assert "4 layers counted" in app.text and app.text.splitlines()[-1].split()[:4] == ["?", "help", "w", "double"]
        await app.press("w")
        assert "8 layers counted" in app.text
        await app.press("left_square_bracket")
        await app.on("strategy")

    drive(ScriptedEngine(runs), script, (90, 24))


@pytest.mark.usefixtures("counted")
def test_a_new_screen_and_its_keys_stand_in_the_palette_and_the_help(runs: Path) -> None:
    async def script(app: Driver) -> None:
        await planned(app)
        await app.press("ctrl+p", *"double")
        assert "Count, w: takes you there" in app.text
        await app.press("enter")
        await app.on("count")
        await app.press("question_mark")
        assert "How many layers there are." in app.text and "Count every layer twice." in app.text

    drive(ScriptedEngine(runs), script)


@pytest.mark.usefixtures("counted")
def test_an_event_of_its_engine_stage_and_its_question_move_a_run_to_a_new_screen() -> None:
    state = State(job=Job("run", "running"), run=Run(at="strategy", stages={"strategy": "running"}))
    state = reduce(state, ev.StageStarted("count", "Counting"))
    assert (state.run.at, state.run.status("count"), state.run.status("strategy")) == ("count", "running", "done")
    state = reduce(replace(state, run=Run(at="strategy")), messages.Asking("count?", True))
    assert (state.run.at, state.run.status("count")) == ("count", "waiting")


@pytest.mark.usefixtures("counted")
def test_a_run_that_never_came_to_it_has_passed_a_new_screen_over() -> None:
    state = reduce(State(job=Job("run", "running")), ev.StageStarted("calibrate", "Calibrating"))
    assert state.run.status("count") == "skipped" and state.run.status("graph") == "done"


@pytest.mark.usefixtures("counted")
def test_reasons_name_stages_by_the_digits_that_they_have_now() -> None:
    assert "(7)" in str(reasons.not_running(State(job=Job("export", "exporting"))))
    assert [a.keys for a in actions.everywhere() if a.goes] == [(str(n),) for n in range(1, 8)]


def test_the_palette_takes_one_to_a_layer_and_to_a_run(runs: Path) -> None:
    async def script(app: Driver) -> None:
        await planned(app)
        app.type("ctrl+p", *"fc1")
        await app.until(lambda _: "layer, Linear" in app.text)
        grid = app.app.screen.query_one(Grid)
        grid.move_to("strategy:=fc1")
        await app.press("enter")
        await app.on("strategy")
        await app.pilot.pause()
        assert app.app.screen.query_one("#strategy", Grid).cursor == "fc1"

    drive(ScriptedEngine(runs), script)


def test_keys_typed_after_the_palette_was_asked_for_never_act_as_keys(runs: Path) -> None:
    async def script(app: Driver) -> None:
        await planned(app)
        stage, theme = app.app.stage_screen, app.app.theme
        app.type("ctrl+p", "T", "q", "1", "n", "S")
        await app.until(lambda _: isinstance(app.app.screen, Palette) and app.app.screen.query_one(Input).value == "Tq1nS")
        assert app.app.stage_screen is stage and app.app.theme == theme and app.state.asking == "quantize"

    drive(ScriptedEngine(runs), script)


def test_an_action_of_a_screen_that_is_not_open_yet_says_why(runs: Path) -> None:
    async def script(app: Driver) -> None:
        await app.press("ctrl+p", *"undo")
        assert "not now: There is no plan yet" in app.text
        await app.press("enter")
        await app.pilot.pause()
        assert app.app.stage_screen is not None and app.app.stage_screen.stage == "model"
        assert "! There is no plan yet" in app.text

    drive(ScriptedEngine(runs), script)
