"""Runs with a person at a screen: answers that say more than yes, what they change in the recipe, and what the events tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driving import Outcome, drive, figures, resumed, state_of

from engine.errors import Cancelled, UsageError
from engine.events import event as ev
from engine.events.cancellation import StopToken
from engine.recipe.changes import rule_part
from engine.recipe.decisions import Answer, Fold, Strategy, Train
from engine.recipe.recipe import Recipe
from engine.recipe.spec import FP32, ActivationSpec, LayerSpec, Rule, WeightSpec

Make = Callable[..., Recipe]
NO_TRAINING: dict[str, Answer] = {"qat": False}
W4 = LayerSpec(WeightSpec(4, "per-channel", method="mse"), ActivationSpec(8))
RULES = (Rule("fc", LayerSpec(WeightSpec(4, "per-group", 16))), Rule("conv1", FP32), Rule("kind:Conv2d", W4))


def kept(folder: Path) -> Recipe:
    return Recipe.load(folder / "recipe.yaml")


def stop_at(name: str) -> Callable[[ev.Event, StopToken], None]:
    def on_event(event: ev.Event, stop: StopToken) -> None:
        if isinstance(event, ev.StageStarted) and event.stage == name:
            stop.set()

    return on_event


def asked(outcome: Outcome) -> list[str]:
    return [ask.key for ask in outcome.of(ev.Ask)]


@pytest.fixture(scope="module")
def plain(tiny_file: Path, own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """An attended run that takes every default."""
    recipe = Recipe.make(model=f"{tiny_file}:make", data={"calibration": 32, "limit": 64}, threshold="drop:0.5")
    return drive(recipe, tmp_path_factory.mktemp("plain") / "run", attended=True)


def test_a_person_is_offered_training_where_the_threshold_is_met(plain: Outcome) -> None:
    assert asked(plain) == ["trace", "analyze", "optimize", "quantize", "qat"]
    assert [ask.default for ask in plain.of(ev.Ask)] == [True, True, True, True, False]
    assert plain.data["qat"] is None and plain.data["verdict"]["met"]


@pytest.mark.parametrize("mode", ["never", "always"])
def test_what_the_recipe_decides_is_not_asked(tiny: Make, tmp_path: Path, mode: str) -> None:
    outcome = drive(tiny(qat={"mode": mode, "epochs": 1}), tmp_path / "run", attended=True)
    assert "qat" not in asked(outcome) and (outcome.data["qat"] is None) is (mode == "never")


def test_attending_changes_no_figure(plain: Outcome, tiny: Make, tmp_path: Path) -> None:
    assert figures(drive(tiny(), tmp_path / "run").data) == figures(plain.data)


def test_the_setting_comes_first_once_there_is_a_folder(plain: Outcome, tiny: Make, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    outcome = drive(tiny(), folder)
    (setting,) = outcome.of(ev.Setting)
    first = next(event for event in outcome.events if not isinstance(event, ev.StageStarted | ev.Notice | ev.StageFinished))
    assert first is setting and setting.directory == str(folder)
    assert Recipe.make(**{**setting.recipe, "slower": []}) == kept(folder), "what was measured is written down"
    assert setting.environment == outcome.data["environment"]
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert next(line for line in lines if line["event"] == "Setting")["recipe"] == setting.recipe


def test_the_graph_before_and_after(plain: Outcome) -> None:
    traced, fused = plain.of(ev.Graph)
    assert (traced.which, fused.which) == ("traced", "fused")
    names = [node.name for node in traced.nodes]
    assert names[0] == "x" and names[-1] == "output" and {"conv1", "bn1", "conv2", "bn2", "fc"} <= set(names)
    assert {node.name for node in fused.nodes} == set(names) - {"bn1", "bn2"}
    assert next(node for node in traced.nodes if node.name == "conv1").params == 8 * 27 + 8
    assert next(node for node in traced.nodes if node.name == "conv1").shape == "N×8×16×16"
    for graph in (traced, fused):
        assert all(node.time_share is not None for node in graph.nodes)
        assert sum(node.time_share for node in graph.nodes) == pytest.approx(1)


def test_the_pairs_before_and_after(plain: Outcome, tiny: Make, tmp_path: Path) -> None:
    found, folded = plain.of(ev.Pairs)
    assert [(p.conv, p.bn, p.conv_node, p.bn_node, p.reason) for p in found.pairs] == [
        ("conv1", "bn1", "conv1", "bn1", None),
        ("conv2", "bn2", "conv2", "bn2", None),
    ]
    assert (found.change, found.ms_before, found.ms_after) == (None, None, None)
    assert all(p.max_abs_delta is None for p in found.pairs) and all(p.max_abs_delta is not None for p in folded.pairs)
    assert folded.change == plain.data["graph"]["fuse_delta"] and folded.ms_before and folded.ms_after
    unattended = drive(tiny(), tmp_path / "run").of(ev.Pairs)[1]
    assert unattended.pairs == folded.pairs and unattended.ms_before is None and unattended.ms_after is None


def test_the_plan_stands_before_the_question(plain: Outcome, tiny: Make, tmp_path: Path) -> None:
    for outcome in (plain, drive(tiny(), tmp_path / "run")):
        tables = [event for event in outcome.events if isinstance(event, ev.Table) and event.key == "plan"]
        places = [outcome.events.index(event) for event in (tables[0], outcome.of(ev.Planned)[0])]
        question = next(i for i, event in enumerate(outcome.events) if isinstance(event, ev.Ask) and event.key == "quantize")
        assert len(tables) == 1 and max(places) < question


def test_a_planned_layer_says_what_the_report_will(plain: Outcome) -> None:
    (planned,) = plain.of(ev.Planned)
    reported = {layer["name"]: layer for layer in plain.data["layers"]}
    assert (planned.preset, planned.fp32_bytes) == ("default", plain.data["baseline"]["size_bytes"])
    assert [layer.path for layer in planned.layers] == ["conv1", "conv2", "fc"]
    for layer in planned.layers:
        row = reported[layer.path]
        assert (layer.kernel, str(layer.actual), str(layer.requested), layer.params) == (
            row["kernel"], row["actual"], row["requested"], row["params"],
        )  # fmt: skip
        assert layer.editable and layer.obstacle is None and layer.requested == layer.proposed and layer.why.startswith(layer.proposed_why)
        assert layer.actual.activations is None or layer.actual.activations.bits <= planned.activation_bits
    assert planned.layers[0].weight_shape == (8, 3, 3, 3)


def test_a_rule_on_a_normalization_does_not_quantize_it(tiny: Make, tmp_path: Path) -> None:
    rules = [{"match": "*", "weights": {"bits": 8}, "activations": {"bits": 8}}]
    outcome = drive(tiny(quantize_first=True, rules=rules), tmp_path / "run")
    rows = {layer.path: layer for layer in outcome.of(ev.Planned)[0].layers}
    assert rows["bn1"].actual == FP32 and not rows["bn1"].editable and rows["bn1"].obstacle == "folded into conv1 at conversion"
    assert rows["bn1"].kernel == rows["conv1"].kernel and rows["conv1"].actual.weights


def test_some_pairs_are_folded_and_the_rest_at_conversion(plain: Outcome, tiny: Make, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    outcome = drive(tiny(), folder, {"optimize": Fold(("bn2",)), **NO_TRAINING}, attended=True)
    assert kept(folder).fold_later == ("bn1",) and not kept(folder).quantize_first
    assert [setting.recipe["fold_later"] for setting in outcome.of(ev.Setting)] == [[], ["bn1"]]
    assert {node.name for node in outcome.of(ev.Graph)[1].nodes} & {"bn1", "bn2"} == {"bn1"}
    assert [p.max_abs_delta is None for p in outcome.of(ev.Pairs)[1].pairs] == [True, False]
    layers = {layer["name"]: layer for layer in outcome.data["layers"]}
    assert layers["bn1"]["actual"] == "folded" and "bn2" not in layers
    graph = outcome.data["graph"]
    assert graph["later"] == ["bn1"] and graph["order"] == "fuse-first" and len(graph["fused"]) == 2
    assert outcome.data["baseline"]["size_bytes"] == plain.data["baseline"]["size_bytes"]
    # Folded in float64 either way: the numbers are those of the whole fold up to float32 rounding.
    assert outcome.data["ptq"]["error"]["sqnr_db"] == pytest.approx(plain.data["ptq"]["error"]["sqnr_db"], abs=1.0)
    assert figures(drive(kept(folder), tmp_path / "again").data) == figures(outcome.data)


def test_all_pairs_or_none_are_yes_or_no(plain: Outcome, tiny: Make, tmp_path: Path) -> None:
    every = drive(tiny(), tmp_path / "all", {"optimize": Fold(("bn1", "bn2"))})
    assert figures(every.data) == figures(plain.data) and kept(tmp_path / "all").fold_later == ()
    none = drive(tiny(), tmp_path / "none", {"optimize": Fold(())})
    assert kept(tmp_path / "none").quantize_first and kept(tmp_path / "none").fold_later == ()
    assert none.data["graph"]["order"] == "quantize-first"


def test_folding_some_trains_and_ends_the_same_when_resumed(tiny: Make, tmp_path: Path) -> None:
    answers: dict[str, Any] = {"optimize": Fold(("bn2",)), "quantize": Strategy("w4a4", ()), "qat": Train(2)}
    whole = drive(tiny(), tmp_path / "whole", answers, attended=True)

    def stop_after_the_first(event: ev.Event, stop: StopToken) -> None:
        if isinstance(event, ev.EpochFinished):
            stop.set()

    folder = tmp_path / "run"
    assert isinstance(drive(tiny(), folder, answers, stop_after_the_first, attended=True).error, Cancelled)
    again = resumed(folder, attended=True)
    assert not again.of(ev.Ask) and [event.epoch for event in again.of(ev.EpochFinished)] == [2]
    found, wanted = figures(again.data), figures(whole.data)
    # The recipe in the file of PTQ tells the epochs once they were agreed to.
    assert abs(found["ptq"].pop("size_bytes") - wanted["ptq"].pop("size_bytes")) <= 16
    assert found == wanted and whole.data["qat"]["epochs"] == 2


@pytest.mark.parametrize("name", ["bn3", "conv1", ""])
def test_only_normalizations_are_folded(tiny: Make, tmp_path: Path, name: str) -> None:
    outcome = drive(tiny(), tmp_path / "run", {"optimize": Fold((name,))})
    assert isinstance(outcome.error, UsageError) and f"{name!r} is no normalization" in str(outcome.error)
    assert not (tmp_path / "run").exists()
    if name:
        assert isinstance(drive(tiny(fold_later=[name]), tmp_path / "run").error, UsageError)


def test_a_strategy_is_shown_and_asked_again_until_it_goes(tiny: Make, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    answers: dict[str, Any] = {"quantize": [Strategy("w8a8", (), go=False), Strategy("w8", RULES, go=False), True], **NO_TRAINING}
    outcome = drive(tiny(rules=[{"match": "conv2", "keep": "fp32"}]), folder, answers, attended=True)
    assert asked(outcome).count("quantize") == 3
    assert [planned.preset for planned in outcome.of(ev.Planned)] == ["default", "w8a8", "w8"]
    assert len([table for table in outcome.of(ev.Table) if table.key == "plan"]) == 3
    last = {layer.path: layer for layer in outcome.of(ev.Planned)[-1].layers}
    assert [last[path].requested for path in ("fc", "conv1", "conv2")] == [rule.spec for rule in RULES]
    assert all(layer.proposed.activations for layer in last.values())
    assert (kept(folder).preset, [rule.rule().spec for rule in kept(folder).rules]) == ("w8", [rule.spec for rule in RULES])
    assert [setting.recipe["preset"] for setting in outcome.of(ev.Setting)] == ["default", "w8a8", "w8"]
    assert {layer["name"]: layer["actual"] for layer in outcome.data["layers"]} == {path: str(row.actual) for path, row in last.items()}
    assert outcome.data["environment"]["recipe"] == outcome.of(ev.Setting)[-1].environment["recipe"]


def test_a_strategy_that_goes_is_not_asked_again_and_is_resumed(tiny: Make, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    answers: dict[str, Any] = {"quantize": Strategy("w8a8", RULES[1:2]), **NO_TRAINING}
    outcome = drive(tiny(), folder, answers, stop_at("calibrate"))
    assert asked(outcome).count("quantize") == 1 and len(outcome.of(ev.Planned)) == 2 and state_of(folder) == "cancelled"
    again = resumed(folder)
    assert not again.of(ev.Ask)
    assert [planned.preset for planned in again.of(ev.Planned)] == ["w8a8"]
    actual = {layer["name"]: layer["actual"] for layer in again.data["layers"]}
    assert actual["conv1"] == "fp32" and actual["conv2"].startswith("w8")
    same = drive(tiny(preset="w8a8", rules=[{"match": "conv1", "keep": "fp32"}]), tmp_path / "same")
    assert figures(same.data) == figures(again.data)


def test_no_after_a_strategy_cancels(tiny: Make, tmp_path: Path) -> None:
    outcome = drive(tiny(), tmp_path / "run", {"quantize": [Strategy("w8a8", (), go=False), False]})
    assert isinstance(outcome.error, Cancelled) and kept(tmp_path / "run").preset == "w8a8"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"quantize": Strategy("w9", ())}, "preset is 'w9'"),
        ({"quantize": Strategy("w8a8", (Rule("a", LayerSpec(WeightSpec(9))),))}, "weights.bits is 9"),
        ({"qat": Train(0)}, "qat.epochs is 0"),
    ],
)
def test_an_answer_that_makes_no_sense(tiny: Make, tmp_path: Path, answer: dict[str, Answer], says: str) -> None:
    error = drive(tiny(), tmp_path / "run", answer, attended=True).error
    assert isinstance(error, UsageError) and says in str(error) and "\n" not in str(error)


def test_training_that_a_person_wants_though_the_threshold_is_met(tiny: Make, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stopped = drive(tiny(), folder, {"qat": True}, stop_at("qat"), attended=True)
    assert asked(stopped)[-1] == "qat" and isinstance(stopped.error, Cancelled)
    assert (kept(folder).qat.mode, kept(folder).qat.epochs) == ("always", 5)
    again = resumed(folder)
    assert not again.of(ev.Ask) and again.data["qat"]["epochs"] == 5


def test_a_yes_that_changes_nothing_leaves_the_recipe_alone(tiny: Make, tmp_path: Path) -> None:
    recipe = tiny(threshold="mse:1e-12", qat={"epochs": 1})
    outcome = drive(recipe, tmp_path / "run", {"qat": Train(1)}, attended=True)
    assert outcome.data["qat"]["epochs"] == 1 and len(outcome.of(ev.Setting)) == 1 and kept(tmp_path / "run").qat.mode == "auto"


def test_a_resumed_run_asks_a_person_about_training_that_had_not_begun(tiny: Make, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    drive(tiny(), folder, on_event=stop_at("evaluate"), attended=True)
    again = resumed(folder, answers=NO_TRAINING, attended=True)
    assert asked(again) == ["qat"] and again.data["qat"] is None


@pytest.mark.parametrize("rule", [*RULES, Rule("a.*", LayerSpec(WeightSpec(5, "per-tensor"), ActivationSpec(7, True, "entropy")), 7)])
def test_a_rule_goes_into_a_recipe_and_back(rule: Rule) -> None:
    assert rule_part(rule).rule() == rule
    recipe = Recipe.make(model="m", rules=[rule_part(rule)])
    assert Recipe.make(**recipe.model_dump()).layer_rules()[0].spec == rule.spec
    assert rule.spec != FP32 or rule_part(rule).keep == "fp32"
