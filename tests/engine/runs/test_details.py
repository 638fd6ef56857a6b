"""What a run tells a screen while it calibrates, measures and trains, and that nobody else pays for it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from driving import Outcome, drive, figures

from engine.data import registry
from engine.events import event as ev
from engine.lowering.graph import conversion, lowering
from engine.lowering.graph.fuse import folded_parameters
from engine.models.custom import build
from engine.recipe.recipe import Recipe
from engine.report.report import finite
from engine.tasks.base import Batch
from engine.tasks.timing import Latency

Make = Callable[..., Recipe]
MIXED: dict[str, Any] = {
    "data": {"calibration": 96, "limit": 64, "batch": 16}, "threshold": "mse:1e-5", "qat": {"mode": "always", "epochs": 2, "lr": 0.02},
    "rules": [
        {"match": "conv1", "weights": {"bits": 4}, "activations": {"bits": 8, "observer": "histogram-mse"}},
        {"match": "conv2", "weights": {"bits": 4, "granularity": "per-group", "group_size": 16}, "activations": {"bits": 7}},
        {"match": "fc", "weights": {"bits": 8, "granularity": "per-tensor"}},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def watched(tiny_file: Path, own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, Outcome]:
    """An attended run with training, every tick told."""
    recipe = Recipe.make(model=f"{tiny_file}:make", **MIXED)
    folder = tmp_path_factory.mktemp("watched") / "run"
    with patch("engine.lowering.graph.calibration.Every", lambda *_: lambda: True):
        return recipe, folder, drive(recipe, folder, attended=True)


@pytest.fixture(scope="module")
def unwatched(watched: tuple[Recipe, Path, Outcome], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return drive(watched[0], tmp_path_factory.mktemp("unwatched") / "run")


def kinds(outcome: Outcome) -> list[str]:
    return [type(event).__name__ for event in outcome.events]


def test_watching_changes_no_figure(watched: tuple[Recipe, Path, Outcome], unwatched: Outcome) -> None:
    assert figures(watched[2].data) == figures(unwatched.data)
    assert watched[2].data["layers"] == [
        {**layer, "time_share": mine["time_share"]} for layer, mine in zip(unwatched.data["layers"], watched[2].data["layers"], strict=True)
    ]


def test_without_a_person_none_of_it_is_made(unwatched: Outcome) -> None:
    assert not unwatched.of(ev.Ranges) + unwatched.of(ev.Weights) + unwatched.of(ev.Layers) + unwatched.of(ev.Judgement)
    assert all("own_sqnr_db" in layer for layer in unwatched.data["layers"])


def test_everything_comes_when_it_is_known(watched: tuple[Recipe, Path, Outcome]) -> None:
    names = kinds(watched[2])
    calibrating = next(i for i, e in enumerate(watched[2].events) if isinstance(e, ev.StageStarted) and e.stage == "calibrate")
    assert names.index("Weights") == calibrating + 1
    assert names.index("Ranges") > calibrating
    measured = [i for i, name in enumerate(names) if name == "Measured"]
    # fp32 and PTQ; and both again with QAT, when they have been timed together.
    assert len(measured) == 5
    assert names[measured[1] + 1 : measured[1] + 3] == names[measured[4] + 1 : measured[4] + 3] == ["Layers", "Judgement"]


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    return value is None or type(value) in (str, int, float, bool)


def test_events_hold_plain_values_alone(watched: tuple[Recipe, Path, Outcome]) -> None:
    for event in watched[2].events:
        if isinstance(event, ev.Ranges | ev.Weights | ev.Layers | ev.Judgement | ev.Step):
            assert plain(asdict(event)), event
            assert json.loads(json.dumps(finite(event.to_dict()), allow_nan=False))["event"] == type(event).__name__


def test_ranges_come_after_each_batch_and_end_with_the_grids(watched: tuple[Recipe, Path, Outcome]) -> None:
    outcome = watched[2]
    told = outcome.of(ev.Ranges)
    assert [(event.seen, event.total, event.final) for event in told] == [(16 * n, 96, False) for n in range(1, 7)] + [(96, 96, True)]
    assert {row.layers for row in told[-1].rows} == {("conv1",), ("conv2",)}
    assert all([row.name for row in event.rows] == [row.name for row in told[-1].rows] for event in told)
    for before, after in itertools.pairwise(told):
        for old, new in zip(before.rows, after.rows, strict=True):
            assert new.low <= old.low and new.high >= old.high and sum(new.bins.counts) >= sum(old.bins.counts)
    for row in told[-1].rows:
        assert sum(row.bins.counts) > 0 and len(row.bins.counts) == 64
        assert row.settled is None or 16 <= row.settled <= 64
    _, height, width = registry.load("digits").shape
    (image,) = (row for row in told[-1].rows if row.layers == ("conv1",))
    assert sum(image.bins.counts) == 96 * 3 * height * width


def test_the_final_clips_are_those_of_the_grids_that_run(watched: tuple[Recipe, Path, Outcome], tiny: Make, tmp_path: Path) -> None:
    held: list[Any] = []
    original = conversion.convert

    def convert(graph: Any, layout: Any, grids: Any, *rest: Any) -> Any:
        held.append((layout, grids))
        return original(graph, layout, grids, *rest)

    with patch.object(conversion, "convert", convert):
        outcome = drive(tiny(preset="w4a4"), tmp_path / "run", {"qat": False}, attended=True)
    (_, grids), final = held[0], outcome.of(ev.Ranges)[-1]
    assert final.final and {row.name for row in final.rows} == set(grids)
    for row in final.rows:
        grid = grids[row.name]
        assert (row.clip_low, row.clip_high) == (-grid.zero_point * grid.scale, (grid.qmax - grid.zero_point) * grid.scale)


def test_a_quarter_of_a_second_lies_between_ranges(tiny: Make, tmp_path: Path) -> None:
    """The whole calibration takes less: the first and the final are told."""
    outcome = drive(tiny(data={"calibration": 64, "limit": 32, "batch": 16}), tmp_path / "run", {"qat": False}, attended=True)
    assert next(event.seen for event in outcome.of(ev.Ranges)) == 16
    assert len(outcome.of(ev.Ranges)) <= 3 and outcome.of(ev.Ranges)[-1].final


def test_weights_are_told_as_they_are_rounded(watched: tuple[Recipe, Path, Outcome]) -> None:
    recipe, _, outcome = watched
    model = build(recipe.model).eval()
    (event,) = outcome.of(ev.Weights)
    rows = {row.path: row for row in event.rows}
    assert set(rows) == {"conv1", "conv2", "fc"}
    folded = {name: folded_parameters(getattr(model, name), getattr(model, bn))[0] for name, bn in (("conv1", "bn1"), ("conv2", "bn2"))}
    folded["fc"] = model.fc.weight
    for path, bits in (("conv1", 4), ("conv2", 4), ("fc", 8)):
        row, weight = rows[path], folded[path].detach().float()
        channels = weight.flatten(1).abs().amax(1)
        assert (row.low, row.high) == pytest.approx((weight.min().item(), weight.max().item()), rel=1e-5)
        assert (row.narrowest, row.widest, row.channels) == (
            pytest.approx(channels.min().item(), rel=1e-5), pytest.approx(channels.max().item(), rel=1e-5), len(weight)
        )  # fmt: skip
        assert len(row.bins.counts) == 64 and sum(row.bins.counts) == weight.numel()
        expected, _ = np.histogram(weight.numpy(), np.linspace(row.low, row.high, 65))
        assert np.abs(np.cumsum(row.bins.counts) - np.cumsum(expected)).max() <= 2
        least, greatest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        assert row.clip_high / greatest == pytest.approx(row.clip_low / least)
        # Rounding by the largest weight leaves nothing out; the step of a group is coarser by its multiplier.
        assert row.widest <= row.clip_high * 1.01 <= 1.2 * row.widest


def test_layers_without_activation_bits_have_their_weights_told_too(tiny: Make, tmp_path: Path) -> None:
    outcome = drive(tiny(preset="w8"), tmp_path / "run", {"qat": False}, attended=True)
    assert {row.path for row in outcome.of(ev.Weights)[0].rows} == {"conv1", "conv2", "fc"}
    assert [(event.rows, event.final) for event in outcome.of(ev.Ranges)][-1] == ((), True)


def test_layers_and_verdicts_are_the_reports(watched: tuple[Recipe, Path, Outcome]) -> None:
    outcome = watched[2]
    layers = {event.which: list(event.rows) for event in outcome.of(ev.Layers)}
    verdicts = {event.which: event.verdict for event in outcome.of(ev.Judgement)}
    assert set(layers) == set(verdicts) == {"ptq", "qat"}
    chosen = "qat" if outcome.data["qat"]["kept"] else "ptq"
    assert layers[chosen] == outcome.data["layers"] and verdicts[chosen]["met"] == outcome.data["verdict"]["met"]
    assert outcome.data["qat"]["why"] in verdicts["qat"]["text"] and "QAT" not in verdicts["ptq"]["text"]
    assert layers["ptq"] != layers["qat"]
    assert all(row["own_sqnr_db"] > row["sqnr_db"] > 20 for row in layers["ptq"] if row["sqnr_db"] is not None)
    for rows in layers.values():
        for row in rows:
            own, whole = row["own_sqnr_db"], row["sqnr_db"]
            # The linear layer has integer weights alone.
            assert (own is not None) is (whole is not None) is (row["name"] in ("conv1", "conv2"))
    if chosen == "qat":
        assert verdicts["qat"] == outcome.data["verdict"]


@pytest.mark.parametrize(("attended", "passes"), [(False, 1), (True, 2)])
def test_the_noise_of_a_form_is_measured_once(tiny: Make, tmp_path: Path, attended: bool, passes: int) -> None:
    calls: list[Any] = []
    original = lowering.layer_sqnr

    def counted(*given: Any) -> Any:
        calls.append(given[4])
        return original(*given)

    with patch.object(lowering, "layer_sqnr", counted):
        outcome = drive(tiny(**{**MIXED, "qat": {"mode": "always", "epochs": 1}}), tmp_path / "run", attended=attended)
    assert outcome.error is None and len(calls) == len(set(map(id, calls))) == passes


def test_layers_that_are_no_integer_units_have_no_noise(tiny: Make, tmp_path: Path) -> None:
    rules = [{"match": "conv1", "keep": "fp32"}, {"match": "fc", "weights": {"bits": 8}, "activations": None}]
    outcome = drive(tiny(rules=rules), tmp_path / "run", {"qat": False}, attended=True)
    rows = {row["name"]: row for row in outcome.data["layers"]}
    assert rows["conv1"]["own_sqnr_db"] is None and rows["conv2"]["own_sqnr_db"] is not None


def test_the_folder_keeps_the_last_ranges_alone(watched: tuple[Recipe, Path, Outcome]) -> None:
    lines = [json.loads(line) for line in (watched[1] / "events.jsonl").read_text().splitlines()]
    assert [line["final"] for line in lines if line["event"] == "Ranges"] == [True]


def test_steps_of_training_are_told(watched: tuple[Recipe, Path, Outcome]) -> None:
    steps = watched[2].of(ev.Step)
    assert steps[-1].done == steps[-1].total and steps[-1].epoch == 2 and {step.stage for step in steps} == {"qat"}


def test_the_forms_of_a_trained_run_are_of_one_timing(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine slows down between two timings: no figure of the report is set beside one of another hour."""
    hours = itertools.count(1)

    def timed(forms: Any, batch: Batch, *_: Any) -> dict[str, Latency]:
        hour = next(hours)
        return {name: Latency(hour * (place + 1.0), 100.0, batch.count) for place, name in enumerate(forms)}

    monkeypatch.setattr("engine.tasks.timing.latencies", timed)
    outcome = drive(tiny(**MIXED), tmp_path / "run", attended=True)
    report = outcome.data
    for key, batch in (("latency_ms", "batch_1"), ("latency_batched_ms", "batch_64")):
        for form in ("ptq", "qat"):
            assert report[form]["speedup"][batch] == pytest.approx(report["baseline"][key]["p50"] / report[form][key]["p50"], abs=0.006)
    told = {event.which: event.figures for event in outcome.of(ev.Measured)}
    assert told == {"baseline": report["baseline"], "ptq": report["ptq"], "qat": report["qat"]}
