"""Whole runs of a small model: presets, orders, QAT, resuming, answers, stops, and the same numbers every time."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import Outcome, drive, figures, resumed, state_of, tree, untimed

import engine
from engine.data import registry
from engine.errors import Cancelled, EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.events.event import Ask, EpochFinished, Event, Finished, Notice, Progress, StageFinished, StageStarted, Stopped
from engine.models.custom import build
from engine.recipe.recipe import Recipe
from engine.report.report import Report
from engine.runs import pipeline

Make = Callable[..., Recipe]
QAT = {"preset": "w4a4", "threshold": "mse:0.0001", "qat": {"mode": "always", "epochs": 3, "lr": 0.02}}


@pytest.fixture(scope="module")
def trained(tiny_file: Path, own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A run with three epochs of QAT."""
    recipe = Recipe.make(model=f"{tiny_file}:make", data={"calibration": 32, "limit": 64}, **QAT)
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, drive(recipe, folder)


@pytest.mark.parametrize(
    ("preset", "weights", "activations"),
    [("w8a8", "w8", "a8"), ("w4a8", "w4", "a8"), ("w4a4", "w4", "a4"), ("w8", "w8", "fp32 activations"), ("w4", "w4", "fp32 activations")],
)
def test_a_preset_reaches_every_layer(tiny: Make, tmp_path: Path, preset: str, weights: str, activations: str) -> None:
    data = drive(tiny(preset=preset), tmp_path / "run").data
    layers = {layer["name"]: layer for layer in data["layers"]}
    assert set(layers) == {"conv1", "conv2", "fc"}
    for layer in layers.values():
        assert layer["requested"].startswith(f"{weights} ") and f", {activations}" in layer["requested"]
        assert layer["actual"].split()[0] == weights
        assert math.isfinite(data["ptq"]["error"]["sqnr_db"])
    if activations == "fp32 activations":
        assert all("fp32" in layer["kernel"] for layer in layers.values())
    assert (tmp_path / "run" / "model.safetensors").stat().st_size == data["ptq"]["size_bytes"]


def test_more_bits_give_less_noise(tiny: Make, tmp_path: Path) -> None:
    sqnr = {}
    for preset in ("w8a8", "w4a8", "w4a4"):
        layers = drive(tiny(preset=preset), tmp_path / preset).data["layers"]
        sqnr[preset] = {layer["name"]: layer["sqnr_db"] for layer in layers}
    for name in ("conv1", "conv2"):
        assert sqnr["w8a8"][name] > sqnr["w4a8"][name] + 10 > sqnr["w4a4"][name] + 11


def test_the_same_recipe_gives_the_same_numbers(tiny: Make, tmp_path: Path) -> None:
    first, second = (drive(tiny(), tmp_path / name) for name in "ab")
    assert figures(first.data) == figures(second.data)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_training_gives_the_same_numbers_for_a_seed_and_others_for_another(trained: Any, tiny: Make, tmp_path: Path) -> None:
    same = drive(tiny(**QAT), tmp_path / "same").data
    other = drive(tiny(**QAT, seed=1), tmp_path / "other").data
    assert figures(same) == figures(trained[1].data)
    assert other["qat"]["loss"] != same["qat"]["loss"]
    assert other["ptq"]["error"] == same["ptq"]["error"]


def test_both_orders_agree_before_training(tiny: Make, tmp_path: Path) -> None:
    fused = drive(tiny(), tmp_path / "fused").data
    first = drive(tiny(quantize_first=True), tmp_path / "first").data
    assert first["graph"]["order"] == "quantize-first" and fused["graph"]["order"] == "fuse-first"
    assert first["ptq"]["value"] == pytest.approx(fused["ptq"]["value"], abs=2 / 64)
    assert first["ptq"]["error"]["sqnr_db"] == pytest.approx(fused["ptq"]["error"]["sqnr_db"], abs=1.0)
    assert "orders" not in fused
    assert [(o["order"], o["run"], o["ptq_mse"]) for o in first["orders"]] == [
        ("quantize-first", "first", first["ptq"]["error"]["mse"]),
        ("fuse-first", "fused", fused["ptq"]["error"]["mse"]),
    ]
    assert "Folding before or after" in (tmp_path / "first" / "report.md").read_text()
    assert Report.load(tmp_path / "first").data["orders"] == first["orders"]


def test_both_orders_in_one_folder_and_the_earlier_run_is_kept_whole(tiny: Make, tmp_path: Path) -> None:
    run = tmp_path / "only" / "run"
    drive(tiny(), run)
    before = tree(run)
    second = drive(tiny(quantize_first=True), run).data
    drive(tiny(preset="w8a8"), run)
    assert {o["order"] for o in second["orders"]} == {"fuse-first", "quantize-first"}
    assert tree(run / "previous" / "1") == before
    assert Report.load(run / "previous" / "2").data["orders"] == second["orders"]
    assert "orders" not in Report.load(run).data


def test_another_recipe_is_not_the_other_order(tiny: Make, tmp_path: Path) -> None:
    drive(tiny(preset="w8a8"), tmp_path / "a")
    assert "orders" not in drive(tiny(quantize_first=True), tmp_path / "b").data


@pytest.mark.parametrize("content", ["[]", "null", "{", '{"schema": 1, "order_key": "x"}', "\0"])
def test_rubbish_beside_a_run_does_not_disturb_it(tiny: Make, tmp_path: Path, content: str) -> None:
    (tmp_path / "rubbish").mkdir()
    (tmp_path / "rubbish" / "report.json").write_text(content)
    outcome = drive(tiny(), tmp_path / "run")
    assert outcome.error is None and outcome.data["verdict"]["met"]


def test_batch_normalization_is_trained_when_quantizing_first(tiny: Make, tmp_path: Path) -> None:
    asked = {**QAT, "qat": {"mode": "always", "epochs": 2, "lr": 0.02, "freeze_bn": 1.0}, "quantize_first": True}
    recipe = tiny(**asked)
    data = drive(recipe, tmp_path / "run").data
    saved = torch.load(tmp_path / "run" / "checkpoints" / "qat.pt", weights_only=True)["model"]
    original = build(recipe.model)
    for conv, norm in (("conv1", original.bn1), ("conv2", original.bn2)):
        assert not torch.equal(saved[f"{conv}.norm.running_mean"], norm.running_mean)
        assert not torch.equal(saved[f"{conv}.norm.weight"], norm.weight)
    assert data["qat"]["loss"][-1] < data["qat"]["loss"][0]
    assert data["exports"][0]["parity"]["max_abs"] == 0


def test_training_is_asked_for_only_when_the_threshold_is_missed(tiny: Make, tmp_path: Path) -> None:
    met = drive(tiny(), tmp_path / "met")
    missed = drive(tiny(threshold="mse:1e-12"), tmp_path / "missed", {"qat": False})
    assert "qat" not in [ask.key for ask in met.of(Ask)]
    assert [ask.key for ask in missed.of(Ask)][-1] == "qat"
    assert met.data["qat"] is None and missed.data["qat"] is None
    assert met.report and met.report.met and missed.report and not missed.report.met
    assert missed.data["verdict"]["chosen"] == "fp32" and "not met" in missed.data["verdict"]["text"]
    assert missed.of(Finished)[0].met is False and state_of(tmp_path / "missed") == "finished"


def test_never_means_never_and_always_needs_no_question(tiny: Make, trained: Any, tmp_path: Path) -> None:
    never = drive(tiny(threshold="mse:1e-12", qat={"mode": "never"}), tmp_path / "never")
    assert "qat" not in [ask.key for ask in never.of(Ask)] and never.data["qat"] is None and not never.data["verdict"]["met"]
    assert "qat" not in [ask.key for ask in trained[1].of(Ask)] and trained[1].data["qat"]


def test_training_lowers_the_loss_and_the_error(trained: Any) -> None:
    folder, outcome = trained
    qat, ptq = outcome.data["qat"], outcome.data["ptq"]
    assert len(qat["loss"]) == len(qat["validation_values"]) == qat["epochs"] == 3
    assert qat["loss"][2] < qat["loss"][1] < qat["loss"][0]
    assert [e.loss for e in outcome.of(EpochFinished)] == qat["loss"]
    assert qat["kept"] is (qat["validation"]["error"]["mse"] < ptq["validation"]["error"]["mse"])
    assert qat["kept"] and qat["error"]["mse"] < ptq["error"]["mse"]
    assert qat["why"] in outcome.data["verdict"]["text"]
    assert qat["kernel"] == ptq["kernel"] and qat["simulated"] == ptq["simulated"]
    export = outcome.data["exports"][0]
    assert export["size_bytes"] == qat["size_bytes"] == (folder / "model.safetensors").stat().st_size
    assert export["parity"]["max_abs"] == 0


def test_training_that_harms_is_not_kept(tiny: Make, tmp_path: Path) -> None:
    rough = {"preset": "w8a8", "threshold": "mse:1e-12", "qat": {"mode": "always", "epochs": 1, "lr": 0.5}}
    data = drive(tiny(**rough), tmp_path / "run").data
    assert data["qat"]["error"]["mse"] > data["ptq"]["error"]["mse"]
    assert data["qat"]["kept"] is False and "not kept" in data["verdict"]["text"]
    assert data["exports"][0]["size_bytes"] == data["ptq"]["size_bytes"]
    x, _ = next(registry.load("digits").batches("test", 64, limit=64))
    exact = build(tiny().model).eval()(x).detach()
    error = (engine.load_quantized(tmp_path / "run")(x) - exact).double().square().mean().item()
    assert error == pytest.approx(data["ptq"]["error"]["mse"], rel=1e-3)


def test_a_stopped_training_goes_on_and_ends_the_same(trained: Any, tiny: Make, tmp_path: Path) -> None:
    def stop_after_the_first(event: Event, stop: StopToken) -> None:
        if isinstance(event, EpochFinished):
            stop.set()

    run = tmp_path / "run"
    stopped = drive(tiny(**QAT), run, on_event=stop_after_the_first)
    assert isinstance(stopped.error, Cancelled) and state_of(run) == "cancelled"
    assert isinstance(stopped.events[-1], Stopped) and not (run / "report.json").exists()
    again = resumed(run)
    assert [e.epoch for e in again.of(EpochFinished)] == [2, 3]
    assert not again.of(Ask)
    assert any("after epoch 1 of 3" in notice.text for notice in again.of(Notice))
    assert figures(again.data) == figures(trained[1].data)
    assert (run / "model.safetensors").read_bytes() == (trained[0] / "model.safetensors").read_bytes()
    assert state_of(run) == "finished"
    lines = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert lines.count("Stopped") == 1 and lines[-1] == "Finished" and lines.count("EpochFinished") == 3


def enough_after_the_first(event: Event, stop: StopToken) -> None:
    if isinstance(event, EpochFinished):
        stop.enough()


def test_training_that_was_ended_early_is_measured_and_says_so(trained: Any, tiny: Make, tmp_path: Path) -> None:
    outcome = drive(tiny(**QAT), tmp_path / "run", on_event=enough_after_the_first)
    short, whole = outcome.data["qat"], trained[1].data["qat"]
    assert (short["epochs"], short["asked_epochs"], short["ended_early"], short["best_epoch"]) == (1, 3, True, 1)
    assert (whole["epochs"], whole["asked_epochs"], whole["ended_early"]) == (3, 3, False)
    assert short["loss"] == whole["loss"][:1] and short["validation_values"] == whole["validation_values"][:1]
    assert short["validation"]["error"]["mse"] > whole["validation"]["error"]["mse"]
    assert [notice.text for notice in outcome.of(Notice) if "ended" in notice.text] == ["training was ended after epoch 1 of 3"]
    assert state_of(tmp_path / "run") == "finished" and outcome.data["exports"][0]["parity"]["max_abs"] == 0


def test_a_resumed_run_trains_the_epochs_that_were_given_up(trained: Any, tiny: Make, tmp_path: Path) -> None:
    """Stopped after training had been ended early: the recipe still asks for three epochs."""

    def and_stop_while_measuring(event: Event, stop: StopToken) -> None:
        enough_after_the_first(event, stop)
        if isinstance(event, StageStarted) and event.title == "Measuring the trained model":
            stop.set()

    drive(tiny(**QAT), tmp_path / "run", on_event=and_stop_while_measuring)
    again = resumed(tmp_path / "run")
    assert [e.epoch for e in again.of(EpochFinished)] == [2, 3]
    assert figures(again.data) == figures(trained[1].data) and not again.data["qat"]["ended_early"]


def test_a_pause_is_in_no_time_that_a_run_tells(tiny: Make, tmp_path: Path) -> None:
    def pause(event: Event, stop: StopToken) -> None:
        if isinstance(event, StageStarted) and event.stage == "calibrate":
            stop.pause()
            threading.Timer(3.0, stop.go_on).start()

    began = time.perf_counter()
    outcome = drive(tiny(), tmp_path / "run", on_event=pause)
    spent = time.perf_counter() - began
    seconds = {event.stage: event.seconds for event in outcome.of(StageFinished)}
    assert outcome.error is None and seconds["calibrate"] < 2.7 and sum(seconds.values()) <= spent - 2.7
    assert outcome.data["ptq"]["seconds"] <= spent - 2.7
    assert all(event.eta < 2.7 for event in outcome.of(Progress) if event.stage == "calibrate")


def test_a_finished_run_is_not_resumed(trained: Any) -> None:
    before = tree(trained[0])
    outcome = resumed(trained[0])
    assert isinstance(outcome.error, UsageError) and "is finished" in str(outcome.error)
    assert tree(trained[0]) == before


def test_a_run_at_work_is_not_resumed_nor_overwritten(tiny: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with untimed():
        steps = pipeline.run(tiny(), run, StopToken())
        while not isinstance(next(steps), Ask):
            pass
        before = tree(run)
        assert state_of(run) == "running"
        second, third = drive(tiny(), run), resumed(run)
        assert isinstance(second.error, EngineError) and "still going" in str(second.error)
        assert isinstance(third.error, UsageError) and "still going" in str(third.error)
        assert tree(run) == before
        steps.close()
    assert state_of(run) == "cancelled"


def test_a_failed_resume_keeps_what_there_was(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    drive(tiny(), run, {"quantize": False})
    events = (run / "events.jsonl").read_text()
    monkeypatch.setattr("engine.runs.rundir.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    outcome = resumed(run)
    assert isinstance(outcome.error, EngineError) and "MB free" in str(outcome.error)
    assert (run / "events.jsonl").read_text() == events and state_of(run) == "cancelled"
    monkeypatch.undo()
    assert resumed(run).report is not None


@pytest.mark.parametrize("key", ["trace", "quantize"])
def test_no_to_a_needed_step_cancels(tiny: Make, tmp_path: Path, key: str) -> None:
    outcome = drive(tiny(), tmp_path / "run", {key: False})
    assert isinstance(outcome.error, Cancelled)
    assert state_of(tmp_path / "run") == "cancelled" and outcome.events[-1] == Stopped(str(tmp_path / "run"), key)
    assert not (tmp_path / "run" / "report.json").exists()


@pytest.mark.parametrize("key", ["analyze", "optimize"])
def test_no_to_folding_is_a_run_in_the_other_order(tiny: Make, tmp_path: Path, key: str) -> None:
    """The recipe says so, the baseline is still the folded model, and the normalization's row names where it went."""
    outcome = drive(tiny(), tmp_path / "run", {key: False})
    data = outcome.data
    assert data["graph"]["order"] == "quantize-first"
    assert Recipe.load(tmp_path / "run" / "recipe.yaml").quantize_first
    assert "fuse" not in [event.stage for event in outcome.of(StageStarted)]
    assert data["ptq"]["error"]["sqnr_db"] > 15
    norms = [layer for layer in data["layers"] if layer["kind"] == "BatchNorm2d"]
    assert norms and all(layer["actual"] == "folded" and "folded into" in layer["reason"] for layer in norms)
    other = drive(tiny(quantize_first=True), tmp_path / "other").data
    assert other["ptq"]["error"] == data["ptq"]["error"] and other["environment"]["recipe"] == data["environment"]["recipe"]


@pytest.mark.parametrize("stage", ["load", "trace", "analyze", "fuse", "plan", "calibrate", "qat", "evaluate", "export"])
def test_a_stop_is_heard_in_every_stage(tiny: Make, tmp_path: Path, stage: str) -> None:
    def stop_there(event: Event, stop: StopToken) -> None:
        if isinstance(event, StageStarted) and event.stage == stage:
            stop.set()

    changes = QAT if stage == "qat" else {}
    outcome = drive(tiny(**changes), tmp_path / "run", on_event=stop_there)
    assert isinstance(outcome.error, Cancelled)
    assert state_of(tmp_path / "run") == "cancelled"
    assert isinstance(outcome.events[-1], Stopped)
    at = next(i for i, event in enumerate(outcome.events) if isinstance(event, StageStarted) and event.stage == stage)
    after = outcome.events[at + 1 :]
    assert not [event for event in after if isinstance(event, StageStarted | Ask)]
    assert len([event for event in after if isinstance(event, Progress)]) <= 1
    assert not (tmp_path / "run" / "report.json").exists()
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_closing_early_leaves_a_cancelled_run(tiny: Make, tmp_path: Path) -> None:
    closed = 0
    for count in range(1, 60, 7):
        run = tmp_path / str(count)
        with untimed():
            steps = pipeline.run(tiny(), run, StopToken())
            seen = [event for _, event in zip(range(count), steps, strict=False)]
            steps.close()
        if any(isinstance(event, Finished) for event in seen):
            break
        if run.exists():
            assert state_of(run) == "cancelled"
            last = (run / "events.jsonl").read_text().splitlines()[-1]
            assert json.loads(last)["event"] == "Stopped"
            closed += 1
    assert closed >= 3


@pytest.mark.parametrize("closing", [True, False])
def test_leaving_at_the_last_event_leaves_a_finished_run(tiny: Make, tmp_path: Path, closing: bool) -> None:
    run = tmp_path / "run"
    with untimed():
        steps = pipeline.run(tiny(), run, StopToken())
        while not isinstance(next(steps), Finished):
            pass
        if closing:
            steps.close()
        else:
            with pytest.raises(KeyboardInterrupt):
                steps.throw(KeyboardInterrupt)
    assert state_of(run) == "finished"
    assert Report.load(run).met


def test_an_interrupt_is_a_stop(tiny: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with untimed():
        steps = pipeline.run(tiny(), run, StopToken())
        while not isinstance(next(steps), Ask):
            pass
        assert isinstance(steps.throw(KeyboardInterrupt), Stopped)
        with pytest.raises(Cancelled):
            next(steps)
    assert state_of(run) == "cancelled"


def test_closing_a_resumed_run_cancels_it_at_once(tiny: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    drive(tiny(), run, {"quantize": False})
    with untimed():
        steps = pipeline.resume(run, StopToken())
        while not (isinstance(event := next(steps), StageStarted) and event.stage == "plan"):
            pass
        assert state_of(run) == "running"
        assert isinstance(steps.throw(KeyboardInterrupt), Stopped)
        with pytest.raises(Cancelled):
            next(steps)
    assert state_of(run) == "cancelled"
    with untimed():
        steps = pipeline.resume(run, StopToken())
        while not (isinstance(event := next(steps), StageStarted) and event.stage == "plan"):
            pass
        steps.close()
    assert state_of(run) == "cancelled"


def test_without_a_folder_a_run_makes_its_own(tiny: Make, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTUI_RUNS", str(own_cache / "runs"))
    outcome = drive(tiny(), None)
    folder = Path(outcome.of(Finished)[0].directory)
    assert folder.parent == own_cache / "runs" and folder.name.endswith("-make-digits")
    assert Report.load(folder).data["schema"] == 1


def test_a_rule_that_matches_nothing_is_a_warning(tiny: Make, tmp_path: Path) -> None:
    rules = [{"match": "nowhere.*", "keep": "fp32"}, {"match": "conv1", "keep": "fp32"}]
    outcome = drive(tiny(rules=rules), tmp_path / "run")
    warnings = [notice.text for notice in outcome.of(Notice) if notice.level == "warning"]
    assert any("nowhere.*" in text for text in warnings) and not any("conv1" in text for text in warnings)
    actual = {layer["name"]: layer["actual"] for layer in outcome.data["layers"]}
    assert actual["conv1"] == "fp32" and actual["conv2"].startswith("w8")
