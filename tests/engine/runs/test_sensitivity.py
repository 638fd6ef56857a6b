"""The harm of each layer, asked for at the plan: estimated, measured, stopped, and gone on with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import TINY, drive, resumed

from engine.errors import Cancelled, EngineError
from engine.events.cancellation import Interrupted, StopToken
from engine.events.event import Event, Notice, Planned, Progress, Sensitivities
from engine.planning.sensitivity import Sensitivity, cured
from engine.recipe.decisions import Sensitive
from engine.recipe.recipe import Recipe
from engine.recipe.spec import FP32, ActivationSpec, LayerSpec, WeightSpec

W4 = (("conv2", "w4"), ("fc", "w2"), ("fc", "a2"))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "tiny.py").write_text(TINY)
    return Recipe.make(
        model=f"{tmp_path / 'tiny.py'}:make", data={"name": "digits", "calibration": 64}, qat={"mode": "never"}, slower=[],
        threshold="sqnr:-100", device="cpu",
    )  # fmt: skip


def asked(*decisions: Any) -> dict[str, Any]:
    return {"quantize": [*decisions, True]}


def test_an_estimate_tells_every_candidate_of_every_layer_and_says_what_it_costs_first(recipe: Recipe, tmp_path: Path) -> None:
    seen = drive(recipe, tmp_path / "run", asked(Sensitive(())))
    (found,) = seen.of(Sensitivities)
    (planned,) = seen.of(Planned)
    widest = min(planned.activation_bits, 8)
    names = ["w8", "w6", "w4", "w3", "w2", f"a{widest}", "a6", "a4", "a3", "a2"]
    assert [(one.path, one.candidate) for one in found.layers] == [(p, n) for p in ("conv1", "conv2", "fc") for n in names]
    assert found.basis == "kl" and found.items == 64 and found.measured == 0
    said = [event.text for event in seen.of(Notice) if "candidates" in event.text]
    assert said and said[0].startswith("estimating 30 candidates of 3 layers on 64 calibration items: about ")
    by_name = {(one.path, one.candidate): one for one in found.layers}
    for path in ("conv1", "conv2", "fc"):
        harms = [by_name[path, name].loss_increase for name in ("w8", "w6", "w4", "w2")]
        assert harms == sorted(harms) and harms[0] > 0
        noise = [by_name[path, name].noise_db for name in ("w8", "w6", "w4", "w2")]
        assert noise == sorted(noise, reverse=True)
        # Each bit halves the step: six decibels, of few weights more or less.
        assert by_name[path, "w8"].noise_db - by_name[path, "w6"].noise_db == pytest.approx(12.04, abs=5)
    assert seen.report is not None and seen.report.data["verdict"]["met"]


def test_an_estimate_is_the_same_every_time_and_made_once_in_a_run(recipe: Recipe, tmp_path: Path) -> None:
    first = drive(recipe, tmp_path / "a", asked(Sensitive(()), Sensitive(()))).of(Sensitivities)
    second = drive(recipe, tmp_path / "b", asked(Sensitive(()))).of(Sensitivities)
    assert first[0] == first[1]
    assert first[0].layers == second[0].layers


def test_what_is_measured_is_the_metric_of_the_network_with_that_layer_rounded(recipe: Recipe, tmp_path: Path) -> None:
    seen = drive(recipe, tmp_path / "run", asked(Sensitive(W4)))
    last = seen.of(Sensitivities)[-1]
    drops = {(one.path, one.candidate): one.drop for one in last.layers if one.drop is not None}
    assert set(drops) == set(W4) and last.measured == 3
    namespace: dict[str, Any] = {}
    exec(TINY, namespace)
    model = namespace["make"]().eval()
    from engine.tasks import classification

    task = classification.alone(recipe)

    def accuracy() -> float:
        right = total = 0
        with torch.no_grad():
            for batch in task.batches("validation", batch=64):
                right += int((model(*batch.args).argmax(1) == batch.targets).sum())
                total += batch.count
        return right / total

    before = accuracy()
    weight = model.fc.weight.data
    top = weight.abs().amax(1, keepdim=True)
    errors = []
    # Two bits with the least squared error: the integers -2 to 1, on a step that is searched here anew.
    for part in torch.linspace(0.1, 1.3, 241):
        step = top * part
        errors.append(((weight / step).round().clamp(-2, 1) * step - weight).square().sum(1))
    best = torch.linspace(0.1, 1.3, 241)[torch.stack(errors).argmin(0)][:, None]
    model.fc.weight.data = (weight / (top * best)).round().clamp(-2, 1) * (top * best)
    assert drops["fc", "w2"] == pytest.approx(before - accuracy(), abs=0.02)


def test_a_measurement_that_is_stopped_goes_on_where_it_was(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def stop_after_one(event: Event, stop: StopToken) -> None:
        if isinstance(event, Progress) and event.stage == "sensitivity" and event.unit == "candidates" and event.done == 1:
            stop.set()

    seen = drive(recipe, out, asked(Sensitive(W4)), stop_after_one)
    assert isinstance(seen.error, Cancelled)
    kept = json.loads((out / "sensitivity.json").read_text())
    assert list(kept["drops"]) == ["conv2 w4"]
    # What is known is taken as it is: a figure that nothing measures comes back.
    kept["drops"]["conv2 w4"] = 0.4375
    (out / "sensitivity.json").write_text(json.dumps(kept))
    seen = resumed(out, None, asked(Sensitive(W4)))
    drops = {(one.path, one.candidate): one.drop for one in seen.of(Sensitivities)[-1].layers if one.drop is not None}
    assert drops["conv2", "w4"] == 0.4375 and set(drops) == set(W4)
    assert any("1 are known already" in event.text for event in seen.of(Notice))
    assert seen.report is not None


def test_a_state_that_is_damaged_or_of_another_model_is_measured_anew(recipe: Recipe, tmp_path: Path) -> None:
    for number, content in enumerate(["{", '{"identity": "another", "baseline": 1, "seconds": 1, "drops": {"fc w2": 9.0}}', "[]"]):
        out = tmp_path / str(number)
        drive(recipe, out, asked(Sensitive(())), lambda event, stop: stop.set() if isinstance(event, Sensitivities) else None)
        (out / "sensitivity.json").write_text(content)
        seen = resumed(out, None, asked(Sensitive((("fc", "w2"),))))
        (drop,) = [one.drop for one in seen.of(Sensitivities)[-1].layers if one.drop is not None]
        assert drop != 9.0 and math.isfinite(drop)


def test_the_harm_of_a_plan_is_the_sum_of_its_layers_and_the_worst_come_first(recipe: Recipe, tmp_path: Path) -> None:
    seen = drive(recipe, tmp_path / "run", asked(Sensitive(())))
    (event,), (planned,) = seen.of(Sensitivities), seen.of(Planned)
    found = Sensitivity(event.layers, event.basis, event.items, event.seconds)
    spec = LayerSpec(WeightSpec(4), ActivationSpec(4))
    specs = {row.path: spec for row in planned.layers if row.editable}
    ranked = found.ranked(specs)
    assert found.total(specs) == pytest.approx(sum(harm for _, harm in ranked))
    assert [harm for _, harm in ranked] == sorted((harm for _, harm in ranked), reverse=True)
    assert found.harm("fc", LayerSpec(WeightSpec(4))) == found.of("fc")["w4"].loss_increase
    assert found.harm("fc", FP32) == 0
    worst = ranked[0][0]
    (rule,) = cured(planned.layers, [worst], "fp32")
    assert rule.match == worst and rule.spec == FP32


def test_an_answer_ends_the_estimate_and_the_run_is_what_it_would_have_been(recipe: Recipe, tmp_path: Path) -> None:
    def answer_came(event: Event, stop: StopToken) -> None:
        if isinstance(event, Progress) and event.stage == "sensitivity":
            stop.interrupt()

    seen = drive(recipe, tmp_path / "ended", asked(Sensitive()), answer_came)
    assert seen.error is None and not seen.of(Sensitivities) and seen.report is not None
    plain = drive(recipe, tmp_path / "plain", asked())
    assert plain.report is not None
    for key in ("mse", "sqnr_db", "agreement"):
        assert seen.report.data["ptq"]["error"][key] == plain.report.data["ptq"]["error"][key]


def test_an_answer_that_came_before_the_estimate_began_is_heard_and_one_from_before_is_not() -> None:
    stop = StopToken()
    stop.interrupt()
    stop.check()
    with pytest.raises(Interrupted), stop.beside():
        stop.check()
    stop.check()
    stop.interrupt(False)
    with stop.beside():
        stop.check()


@pytest.mark.parametrize(
    "error", [EngineError("the fp32 model gives NaN"), torch.OutOfMemoryError("tried to allocate 2 GiB"), MemoryError()]
)
def test_an_estimate_that_fails_ends_no_run(error: Exception, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*given: Any, **more: Any) -> Any:
        raise error
        yield

    monkeypatch.setattr("engine.lowering.sensitivity.estimate", failing)
    seen = drive(recipe, tmp_path / "run", asked(Sensitive()))
    assert seen.error is None and seen.report is not None
    (found,) = seen.of(Sensitivities)
    assert not found.layers
    assert any(f"could not be estimated: {error}" in event.text for event in seen.of(Notice))
