"""A run that is stopped, or killed, keeps what its stages found: calibration and measuring are not done again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driving import TINY, Outcome, child_environment, drive, figures, resumed, state_of

from engine.errors import Cancelled
from engine.events.cancellation import StopToken
from engine.events.event import Ask, EpochFinished, Event, Notice, Progress, StageStarted, Step
from engine.recipe.recipe import Recipe
from engine.runs.place import Place
from engine.runs.rundir import CALIBRATION, MEASURED, list_runs

QAT = {"mode": "always", "epochs": 2, "batch": 128}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Recipe]:
    (tmp_path / "tiny.py").write_text(TINY)

    def recipe(**changes: Any) -> Recipe:
        return Recipe.make(**{
            "model": f"{tmp_path / 'tiny.py'}:make", "data": {"name": "digits", "calibration": 64, "limit": 128}, "qat": QAT,
            "threshold": "drop:0.5", "device": "cpu", **changes,
        })  # fmt: skip

    return recipe


def stop_in_training(event: Event, stop: StopToken) -> None:
    if isinstance(event, EpochFinished):
        stop.set()


def worked(outcome: Outcome) -> list[str]:
    """The stages that took items in, in order."""
    found: list[str] = []
    stage = ""
    for event in outcome.events:
        if isinstance(event, StageStarted):
            stage = f"{event.stage}: {event.title}"
        if isinstance(event, Progress) and stage not in found:
            found.append(stage)
    return found


def kept(outcome: Outcome) -> list[str]:
    return [notice.text for notice in outcome.of(Notice) if "is kept from before" in notice.text]


def test_a_resumed_run_neither_calibrates_nor_measures_again(make: Callable[..., Recipe], tmp_path: Path) -> None:
    whole = drive(make(), tmp_path / "whole")
    assert whole.report is not None
    run = tmp_path / "run"
    first = drive(make(), run, on_event=stop_in_training)
    assert isinstance(first.error, Cancelled) and (run / CALIBRATION).exists() and (run / MEASURED).exists()
    assert any("calibrate" in stage for stage in worked(first)) and any("Measuring on" in stage for stage in worked(first))
    again = resumed(run)
    assert len(kept(again)) == 2
    assert not any("calibrate" in stage or "Measuring on" in stage for stage in worked(again))
    assert figures(again.data) == figures(whole.data)
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert state_of(run) == "finished" and not (run / CALIBRATION).exists() and not (run / MEASURED).exists()


def test_moments_that_gptq_rounds_by_are_kept(make: Callable[..., Recipe], tmp_path: Path) -> None:
    rules = [{"match": "*", "weights": {"bits": 4, "method": "gptq"}}]
    whole, run = drive(make(rules=rules), tmp_path / "whole"), tmp_path / "run"
    drive(make(rules=rules), run, on_event=stop_in_training)
    again = resumed(run)
    assert len(kept(again)) == 2 and figures(again.data) == figures(whole.data)


CHILD = """
import os, signal, sys
from pathlib import Path
from engine.events.cancellation import StopToken
from engine.events.event import EpochFinished, Step
from engine.recipe.recipe import Recipe
from engine.runs import pipeline
from driving import untimed

epochs = 0
with untimed():
    for event in pipeline.run(Recipe.load(Path(sys.argv[1])), Path(sys.argv[2]), StopToken()):
        epochs += isinstance(event, EpochFinished)
        if epochs == 1 and isinstance(event, Step):
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow  # A process of its own, which imports PyTorch, and is killed.
def test_a_run_that_is_killed_in_its_second_epoch_goes_on_there(make: Callable[..., Recipe], tmp_path: Path) -> None:
    run, asked = tmp_path / "runs" / "one", tmp_path / "recipe.yaml"
    asked.write_text(make().to_yaml())
    environment = child_environment()
    environment["PYTHONPATH"] += f":{Path(__file__).parents[1]}"
    ended = subprocess.run([sys.executable, "-c", CHILD, asked, run], env=environment, capture_output=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-2000:]
    (summary,) = list_runs(tmp_path / "runs")
    assert summary.state == "failed" and summary.text.startswith("QAT epoch 2 of 2, step ")
    again = resumed(run)
    assert len(kept(again)) == 2
    assert not any("calibrate" in stage or "Measuring on" in stage for stage in worked(again))
    assert [event.epoch for event in again.of(EpochFinished)] == [2] and again.report is not None


def test_what_belongs_to_another_plan_is_not_taken(make: Callable[..., Recipe], tmp_path: Path) -> None:
    run = tmp_path / "run"
    drive(make(), run, on_event=stop_in_training)
    changed = Recipe.load(run / "recipe.yaml").model_dump(mode="json")
    changed["rules"] = [{"match": "conv2", "keep": "fp32"}]
    (run / "recipe.yaml").write_text(Recipe.make(**{k: v for k, v in changed.items() if v is not None}).to_yaml())
    (run / "checkpoints" / "qat.pt").unlink()
    again = resumed(run)
    assert not kept(again) and any("Measuring on" in stage for stage in worked(again))


@pytest.mark.parametrize("content", ["[]", "\x00" * 64])
def test_what_is_damaged_is_found_again(make: Callable[..., Recipe], tmp_path: Path, content: str) -> None:
    run = tmp_path / "run"
    drive(make(), run, on_event=stop_in_training)
    for name in (CALIBRATION, MEASURED):
        (run / name).write_text(content)
    again = resumed(run)
    assert not kept(again) and again.report is not None, again.error


def test_figures_that_were_made_up_are_refused_by_their_type(make: Callable[..., Recipe], tmp_path: Path) -> None:
    run = tmp_path / "run"
    drive(make(), run, on_event=stop_in_training)
    told = json.loads((run / MEASURED).read_text())
    told["figures"]["latencies"] = 3
    (run / MEASURED).write_text(json.dumps(told))
    assert kept(resumed(run)) == ["the calibration is kept from before the run was stopped"]


def test_a_person_who_stops_at_the_question_of_training_is_asked_it_again_at_once(make: Callable[..., Recipe], tmp_path: Path) -> None:
    run = tmp_path / "run"

    def stop_at_the_question(event: Event, stop: StopToken) -> None:
        if isinstance(event, Ask) and event.key == "qat":
            stop.set()

    first = drive(make(qat={"mode": "auto", "epochs": 1}), run, on_event=stop_at_the_question, attended=True)
    assert isinstance(first.error, Cancelled)
    assert json.loads((run / "state.json").read_text())["text"] == "at the question of training"
    again = resumed(run, answers={"qat": False}, attended=True)
    assert [ask.key for ask in again.of(Ask)] == ["qat"] and len(kept(again)) == 2
    assert not any("Measuring on" in stage for stage in worked(again)) and again.report is not None
    assert {row["name"] for row in again.data["layers"] if row["harm"] is not None} == {"conv1", "conv2", "fc"}


def test_a_place_is_said_in_words() -> None:
    place = Place()
    assert place.text == "loading"
    assert place.see(StageStarted("calibrate", "Calibrating")) and place.text == "calibration"
    assert not place.see(Progress("calibrate", 128, 512, "img")) and place.text == "calibration, 128 of 512 img"
    assert place.see(StageStarted("qat", "Training"))
    assert place.see(Step("qat", 1, 5, 10, 500, 0.1, 0.1)) and place.text == "QAT epoch 1 of 5, step 10"
    assert not place.see(Step("qat", 1, 5, 20, 500, 0.1, 0.1))
    assert place.see(Step("qat", 2, 5, 110, 500, 0.1, 0.1)) and place.text == "QAT epoch 2 of 5, step 10"
    assert place.see(EpochFinished(2, 5, 0.1, 0.9, 0.1, True, "qat")) and place.text == "QAT after epoch 2 of 5"
