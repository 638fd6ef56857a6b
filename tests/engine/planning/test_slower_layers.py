"""Runs in which a layer is slower on integers: marked before the question, decided once, and the same again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import driving
import pytest
from driving import Outcome, drive, figures, resumed

from engine.events import event as ev
from engine.events.cancellation import StopToken
from engine.kernels.probe import probe
from engine.kernels.stopwatch import Race, Run
from engine.recipe.decisions import Strategy
from engine.recipe.recipe import Recipe

Make = Callable[..., Recipe]
INTEGER = f"a{probe().activation_bits} per-tensor"


class SlowLinear(driving.Untimed):
    """The linear layer loses alone, and what is around it too; every convolution wins."""

    quiet_here = True

    def __init__(self, stop: StopToken, seconds: float, machine: str | None = None) -> None:
        super().__init__(stop, seconds, machine)
        self.quiet = self.quiet_here

    def race(self, key: str, make: Callable[[], tuple[Run, Run]]) -> Race | None:
        found = super().race(key, make)
        return (0.3, 0.1) if "linear" in key else found


class Busy(SlowLinear):
    quiet_here = False


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    if not probe().integer:
        pytest.skip("no integer kernel runs here")
    monkeypatch.setattr(driving, "Untimed", SlowLinear)


def row(outcome: Outcome, path: str = "fc") -> dict[str, Any]:
    return next(layer for layer in outcome.data["layers"] if layer["name"] == path)


@pytest.mark.usefixtures("slow")
def test_a_slower_layer_is_marked_before_the_question_and_the_proposal_says_what_it_did(tiny: Make, tmp_path: Path) -> None:
    outcome = drive(tiny(), tmp_path / "run")
    question = next(i for i, event in enumerate(outcome.events) if isinstance(event, ev.Ask) and event.key == "quantize")
    planned = next(event for event in outcome.events[:question] if isinstance(event, ev.Planned))
    (marked,) = (layer for layer in planned.layers if layer.slower)
    assert marked.path == "fc" and (marked.int8_ms, marked.fp32_ms) == (0.3, 0.1)
    assert str(marked.actual) == "w8 per-channel, fp32 activations" and marked.proposed == marked.actual
    table = next(event for event in outcome.events[:question] if isinstance(event, ev.Table) and event.key == "plan")
    assert [line[table.columns.index("int8 alone")] for line in table.rows] == ["2.0× faster", "2.0× faster", "3.0× slower"]
    found = row(outcome)
    assert found["speedup"] == {"int8_ms": 0.3, "fp32_ms": 0.1} and row(outcome, "conv1")["speedup"] == {"int8_ms": 1.0, "fp32_ms": 2.0}
    assert "slower alone here: 0.300 ms on integers, 0.100 ms in fp32" in found["reason"] and "so it is computed in fp32" in found["reason"]
    assert outcome.data["ptq"]["integer_layers"] == 2 and outcome.data["ptq"]["stored_layers"] == 1
    assert Recipe.load(tmp_path / "run" / "recipe.yaml").slower == ("fc",)
    assert outcome.of(ev.Setting)[-1].recipe["slower"] == ["fc"]


@pytest.mark.usefixtures("slow")
def test_a_recipe_that_was_kept_gives_the_same_plan_whatever_is_measured(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = drive(tiny(), tmp_path / "first")
    monkeypatch.undo()
    again = drive(Recipe.load(tmp_path / "first" / "recipe.yaml"), tmp_path / "again")
    assert row(again)["speedup"] == {"int8_ms": 1.0, "fp32_ms": 2.0} and "the recipe has it" in row(again)["reason"]
    assert figures(again.data) == figures(first.data)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "first" / "model.safetensors").read_bytes()
    fast = drive(tiny(), tmp_path / "fast")
    assert Recipe.load(tmp_path / "fast" / "recipe.yaml").slower == () and str(row(fast)["actual"]).endswith(INTEGER)


@pytest.mark.usefixtures("slow")
def test_a_resumed_run_decides_as_it_did(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_at_calibration(event: ev.Event, stop: StopToken) -> None:
        if isinstance(event, ev.StageStarted) and event.stage == "calibrate":
            stop.set()

    drive(tiny(), tmp_path / "run", on_event=stop_at_calibration)
    monkeypatch.undo()
    assert "fp32 activations" in row(resumed(tmp_path / "run"))["actual"]


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("changes", [{"preset": "w8a8"}, {"rules": [{"match": "fc", "weights": {"bits": 8}, "activations": {"bits": 8}}]}])
def test_what_is_asked_for_is_done_and_marked(tiny: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    outcome = drive(tiny(**changes), tmp_path / "run")
    found = row(outcome)
    assert found["actual"].endswith(INTEGER) and "slower alone here" in found["reason"] and "so it is" not in found["reason"]


@pytest.mark.usefixtures("slow")
def test_the_proposal_is_there_to_choose_after_another_preset(tiny: Make, tmp_path: Path) -> None:
    answers: dict[str, Any] = {"quantize": [Strategy("default", (), go=False), True]}
    outcome = drive(tiny(preset="w8a8"), tmp_path / "run", answers)
    first, last = outcome.of(ev.Planned)
    assert [layer.proposed for layer in first.layers] == [layer.requested for layer in last.layers]
    assert Recipe.load(tmp_path / "run" / "recipe.yaml").slower == ("fc",)


def test_a_busy_machine_decides_nothing(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not probe().integer:
        pytest.skip("no integer kernel runs here")
    monkeypatch.setattr(driving, "Untimed", Busy)
    outcome = drive(tiny(), tmp_path / "run")
    assert row(outcome)["actual"].endswith(INTEGER) and "the machine is busy" in row(outcome)["reason"]
    assert Recipe.load(tmp_path / "run" / "recipe.yaml").slower is None


def test_a_name_that_is_no_layer_is_told(tiny: Make, tmp_path: Path) -> None:
    outcome = drive(tiny(slower=["fc", "fc9"]), tmp_path / "run")
    assert [notice.text for notice in outcome.of(ev.Notice) if notice.text.startswith("slower: fc9 is no layer")]
    assert "fp32 activations" in row(outcome)["actual"]


def test_the_recipes_key_is_part_of_what_was_asked_where_it_names_a_layer(tiny: Make) -> None:
    plain = tiny().fingerprint()
    assert tiny(slower=[]).fingerprint() == plain != tiny(slower=["fc"]).fingerprint()
