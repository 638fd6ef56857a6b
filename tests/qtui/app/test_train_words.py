"""What a training says and lists: pure functions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scripted_engine import MEASURED

from engine.events import event as ev
from qtui.screens import train_words
from qtui.state import Job, Run, State, Training
from qtui.widgets import training_words as words
from qtui.widgets.training_words import View

LINES = (("fp32", 0.9931), ("PTQ", 0.9861))
EPOCHS = (
    ev.EpochFinished(1, 3, 0.3, 0.98, 0.001, True, "qat"),
    ev.EpochFinished(2, 3, 0.15, 0.9931, 0.001, True, "qat"),
)


def step(epoch: int, done: int) -> ev.Step:
    return ev.Step("qat", epoch, 3, done, 51, 0.2, 0.002)


def view(epoch: int = 3, done: int = 42, epochs: tuple[ev.EpochFinished, ...] = EPOCHS, **more: object) -> View:
    progress = ev.Progress("qat", 500, 1077, "img", 100.0, 5.77)
    made = View("QAT", Training(((1, 0.4), (done, 0.2)), epochs, step(epoch, done)), progress, LINES)
    return replace(made, **more)  # type: ignore[arg-type]


def test_title() -> None:
    assert words.title(view()) == "QAT ─ epoch 3 of 3 ─ step 42 of 51"
    assert words.title(view(3, 51)) == "QAT ─ epoch 3 of 3 ─ validating"
    assert words.title(view(2, 34)) == "QAT ─ epoch 2 of 3 ─ step 34 of 51"
    assert words.title(view(running=False)) == "QAT ─ 2 of 3 epochs done"
    assert words.title(View("QAT")) == "QAT"
    assert words.title(View("QAT", Training(epochs=EPOCHS))) == "QAT ─ 2 of 3 epochs"


def test_time_left_is_that_of_the_whole_training() -> None:
    assert words.seconds_left(view(1, 8, ())) == pytest.approx((3 * 1077 - 500) / 100)
    assert words.seconds_left(view(3, 42)) == pytest.approx((1077 - 500) / 100)
    assert words.seconds_left(view(3, 51)) is None
    assert words.line(view()) == (42, 51, "100 img/s", "6 s left")
    assert words.line(view(status="paused")) == (42, 51, "paused", "")
    assert words.line(View("QAT")) == (0, 1, "", "")
    assert words.line(view(running=False, training=Training(epochs=EPOCHS)))[:2] == (1, 1)


def test_rows_compare_with_ptq_where_there_is_one() -> None:
    rows = words.rows(view())
    assert [row.cells[:5] for row in rows] == [("1", "0.3000", "98.00 %", "-0.61", "0.001"), ("2", "0.1500", "99.31 %", "+0.70", "0.001")]
    assert [row.role for row in rows] == ["", "title"]
    alone = view(lines=())
    assert len(words.columns(alone)) == 5 and words.rows(alone)[0].cells[:4] == ("1", "0.3000", "98.00 %", "0.001")
    broken = view(epochs=(ev.EpochFinished(1, 3, math.nan, math.nan, math.nan, False),))
    assert words.rows(broken)[0].cells[:5] == ("1", "–", "–", "–", "–")


def test_sentences() -> None:
    assert words.best_so_far(view()) == "Best so far: epoch 2, 99.31 % on validation, 0.7 points over PTQ. It is kept if you stop."
    assert words.best_so_far(view(running=False)) == "The best of 2 epochs is epoch 2: 99.31 % on validation, 0.7 points over PTQ."
    assert "the same as fp32" in words.best_so_far(view(lines=(("fp32", 0.9931),)))
    assert "0.05 points under PTQ" in words.best_so_far(view(lines=(("PTQ", 0.9936),)))
    assert "After each epoch" in words.best_so_far(view(epochs=())) and "Training begins" in words.best_so_far(View("QAT"))
    perplexity = replace(view(), metric="perplexity", lines=(("fp32", 20.0),), training=Training(epochs=(replace(EPOCHS[0], value=23.41),)))
    assert "23.41 on validation, 3.4 over fp32" in words.best_so_far(perplexity)


def test_points_of_the_charts() -> None:
    points = words.series(view())
    assert points.means == ((17.0, 0.3), (34.0, 0.15)) and points.best == (2.0, pytest.approx(99.31))
    assert (points.last_step, points.last_epoch) == (51.0, 3.0)
    empty = words.series(View("QAT"))
    assert (empty.steps, empty.best, empty.last_step, empty.last_epoch) == ((), None, 1.0, 1.0)


def test_a_report_alone_has_a_training_too() -> None:
    run = Run(measured={"ptq": MEASURED["ptq"], "qat": MEASURED["qat"]}, report={"qat": {}})
    found = train_words.training(run)
    assert [e.value for e in found.epochs] == [0.98, 0.9931, 0.99] and found.best is not None and found.best.epoch == 2
    state = State(run=run)
    assert train_words.lines(run) == LINES and train_words.any_training(state)
    assert "QAT is kept" in train_words.sentence(state) and not train_words.view(state).running


def test_states_of_a_training() -> None:
    run = Run(at="train", phase="qat", training=view().training, measured={"ptq": MEASURED["ptq"]}, progress=view().progress)
    job = Job("run", "run")
    assert train_words.view(State(job=job, run=run)).status == ""
    assert train_words.view(State(job=replace(job, paused=True), run=run)).status == "paused: p goes on"
    assert "stopping" in train_words.sentence(State(job=replace(job, stopping=True), run=run))
    later = replace(run, phase="evaluate", doing="Measuring the trained model")
    assert train_words.view(State(job=job, run=later)).status == "measuring the trained model"
    assert "being measured" in train_words.sentence(State(job=job, run=later))
    stopped = State(run=replace(run, stopped=True))
    assert train_words.view(stopped).status == "stopped" and "goes on with it" in train_words.sentence(stopped)
    early = State(run=replace(run, stopped=True, training=replace(run.training, epochs=())))
    assert train_words.sentence(early) == "Training was stopped: r on the first screen (1) goes on with it."


def test_nothing_was_trained() -> None:
    assert not train_words.any_training(State())
    assert "t on the calibration" in train_words.empty(State(job=Job("run", "run", asking="qat")))
    assert "t in the report" in train_words.empty(State(run=Run(report={"verdict": {}})))
    assert "QAT" in train_words.sentence(State())


def test_a_trainings_share_above_is_that_of_all_its_steps() -> None:
    from qtui.state import Job
    from qtui.subject import doing

    run = Run(phase="qat", progress=ev.Progress("qat", 500, 1000, "img", 100.0, 5.0), training=Training(now=step(1, 5)))
    assert doing(State(job=Job("run", "x"), run=run)) == "9 %"


def test_after_the_last_image_no_time_is_left_to_tell() -> None:
    from qtui.screens import calibrate_work

    progress = ev.Progress("evaluate", 360, 360, "img", 4000.0, 0.0)
    assert calibrate_work.line(State(job=Job("run", "x"), run=Run(progress=progress)))[3] == ""
