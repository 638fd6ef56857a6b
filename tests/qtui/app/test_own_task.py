"""A person's own model and task by key: asked for one after the other, shown, and given to the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtui import catalog, text
from qtui.catalog import Choice
from qtui.screens.calibrate_result import limit
from qtui.screens.models_rows import choice_parts, model_sentence
from qtui.screens.report_rows import quality


@pytest.mark.parametrize(
    ("value", "wrong"), [("", False), ("pkg.mod:task", False), ("task.py", True), ("nowhere.py:task", True), (":task", True)]
)
def test_an_own_task_is_checked_before_it_is_run(value: str, wrong: bool) -> None:
    assert (catalog.wrong_task(value) is not None) == wrong


def test_a_task_is_in_what_the_run_is_asked_and_goes_with_its_model(tmp_path: Path) -> None:
    choice = Choice("net.py:make", task="task.py:task")
    assert choice.fields()["task"] == "task.py:task" and "task" not in Choice("net.py:make").fields()
    assert choice.with_model("simplecnn").task == ""
    assert choice_parts(choice, False)[0][:2] == ("o", "task")
    assert all(key != "d" for key, _, _ in choice_parts(choice, False))
    assert ("e", "error", "metric at most 0.005 worse") in choice_parts(choice, False)


def test_the_sentence_says_who_measures() -> None:
    model = catalog.models(given=["net.py:make"])
    own = next(m for m in model if m.name == "net.py:make")
    assert "measures it" in model_sentence(own, Choice("net.py:make", task="task.py:task"))


def test_figures_of_a_metric_of_ones_own_are_no_points_of_accuracy() -> None:
    assert limit("drop:0.005", "MAE") == "MAE at most 0.005 worse" and limit("drop:0.005") == "a drop of at most 0.5 points"
    assert text.metric("MAE", 0.006639) == "0.006639" and text.metric("accuracy", 0.9833) == "98.33 %"
    assert quality("MAE", 0.006639, 0.0004) == "0.006639 ±0.0004" and quality("accuracy", 0.9972, 0.008) == "99.72 ±0.8"
