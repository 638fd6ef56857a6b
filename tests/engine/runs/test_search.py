"""A run that searches a plan for its targets: what it tries, when it stops, and how it goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from driving import TINY, drive, resumed

from engine.errors import Cancelled
from engine.events.cancellation import StopToken
from engine.events.event import Event, Finished, Notice, Planned, StageFinished, StageStarted, Table
from engine.recipe.recipe import Recipe

# With weights that are most of the file.
WIDE = (
    TINY.replace("(3, 8,", "(3, 32,").replace("BatchNorm2d(8)", "BatchNorm2d(32)").replace("(8, 16,", "(32, 64,")
    .replace("BatchNorm2d(16)", "BatchNorm2d(64)").replace("Linear(16", "Linear(64")
)  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("model") / "tiny.py"
    path.write_text(WIDE)
    return Recipe.make(
        model=f"{path}:make", data={"name": "digits", "calibration": 64}, qat={"mode": "never"}, slower=[], device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def out_of_reach(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A whole search for what no plan has, and its folder."""
    out = tmp_path_factory.mktemp("reach") / "run"
    return drive(asked(recipe, "size:1kB"), out), out


def asked(recipe: Recipe, *targets: str, **changes: Any) -> Recipe:
    return Recipe.make(**{**recipe.model_dump(exclude={"threshold", "targets"}), "targets": list(targets), **changes})


def trials(seen: Any) -> list[str]:
    return [event.title for event in seen.of(StageStarted) if event.stage == "search"]


def test_a_target_that_the_proposal_meets_costs_one_trial(recipe: Recipe, tmp_path: Path) -> None:
    seen = drive(asked(recipe, "drop:0.5"), tmp_path / "run")
    assert trials(seen) == ["Trying: as proposed"]
    found = seen.data["search"]
    assert found["met"] and found["chosen"] == "as proposed" and found["targets"] == ["drop:0.5"]
    (tried,) = found["tried"]
    assert tried["kept"] and tried["seconds"] > 0 and tried["drop"] <= 0.5
    assert found["test"]["drop"] == pytest.approx(seen.data["baseline"]["value"] - seen.data["ptq"]["value"])
    text = (tmp_path / "run" / "report.md").read_text()
    assert "## Search" in text and "**as proposed**" in text and "On test, which chose nothing:" in text


def test_a_target_that_cannot_be_had_tries_every_remedy_and_keeps_the_nearest(out_of_reach: tuple[Any, Path]) -> None:
    seen, out = out_of_reach
    titles = trials(seen)
    assert titles[0] == "Trying: mixed precision, rounded to nearest"
    assert any("observers" in title for title in titles) and any("GPTQ" in title for title in titles)
    assert "Trying: biases corrected" in titles and "Trying: channels equalized" in titles
    found = seen.data["search"]
    assert not found["met"] and found["skipped"][0]["title"] == "as proposed"
    assert all(isinstance(one["gain"], float) for one in found["tried"][1:])
    chosen = next(one for one in found["tried"] if one["title"] == found["chosen"])
    assert chosen["size_bytes"] == min(one["size_bytes"] for one in found["tried"])
    # What is chosen is what the run then makes: the same figure on validation.
    assert seen.data["ptq"]["validation"]["value"] == pytest.approx(chosen["value"])
    assert seen.data["ptq"]["size_bytes"] == pytest.approx(chosen["size_bytes"], rel=0.05)
    # What a trial repaired is repaired once in what is shipped, and no other trial's repair is told as its own.
    state = json.loads((out / "search.json").read_text())
    repairs = next(one["repairs"] for one in state["tried"] if one["key"] == chosen["key"])
    kept = Recipe.load(out / "recipe.yaml")
    assert [name for name in ("bias_correction", "bn_reestimation", "equalize") if getattr(kept, name)] == sorted(repairs)
    assert len(seen.data["graph"].get("repairs", ())) <= len(repairs)


def test_a_size_that_no_plan_has_ends_the_search_where_the_drop_is_met_and_is_no_success(recipe: Recipe, tmp_path: Path) -> None:
    seen = drive(asked(recipe, "size:1kB", "drop:1"), tmp_path / "run")
    assert all("mixed precision" in title for title in trials(seen))
    found, end = seen.data["search"], seen.of(Finished)[-1]
    assert not found["met"] and "nothing is smaller or faster (size:1000B (it has " in found["skipped"][-1]["why"]
    assert not end.met and "Target size:1000B (it has " in end.text and end.text.endswith("not met.")
    assert seen.data["verdict"]["text"] == end.text


def test_a_size_is_met_by_mixed_precision_and_what_cannot_fit_is_not_tried(recipe: Recipe, tmp_path: Path) -> None:
    plain = drive(asked(recipe), tmp_path / "plain").data
    fp32, eight = plain["baseline"]["size_bytes"], plain["ptq"]["size_bytes"]
    aim = int(eight - 8000)
    seen = drive(asked(recipe, f"size:{aim}B", "drop:1"), tmp_path / "run")
    found = seen.data["search"]
    assert found["skipped"][0]["title"] == "as proposed" and f"{fp32}" not in found["skipped"][0]["why"]
    assert found["met"], found["tried"]
    assert seen.data["ptq"]["size_bytes"] <= aim
    assert trials(seen)[0] == "Trying: mixed precision, rounded to nearest"
    sizes, harms = ([row[key] for row in found["front"]] for key in ("size_bytes", "harm"))
    assert sizes == sorted(sizes) and harms == sorted(harms, reverse=True)


def test_bits_per_weight_count_scales_and_are_met(recipe: Recipe, tmp_path: Path) -> None:
    seen = drive(asked(recipe, "bpw:6", "drop:1"), tmp_path / "run")
    (planned, *_), last = seen.of(Planned), seen.of(Planned)[-1]
    bits = total = 0
    for row in last.layers:
        if row.editable:
            count, out = math.prod(row.weight_shape), row.weight_shape[0]
            width = 32 if row.actual.weights is None else row.actual.weights.bits
            bits += width * count + (32 * out if row.actual.weights else 0)
            total += count
    assert bits / total <= 6 + 1e-9
    assert seen.data["search"]["met"] and len(planned.layers) == len(last.layers)


def test_a_rule_of_the_recipe_stands(recipe: Recipe, tmp_path: Path) -> None:
    rules = [{"match": "conv1", "keep": "fp32"}]
    seen = drive(asked(recipe, "bpw:7", "drop:1", rules=rules), tmp_path / "run")
    rows = {row.path: row for row in seen.of(Planned)[-1].layers}
    assert rows["conv1"].actual.weights is None


def test_a_search_that_is_stopped_goes_on_after_its_last_trial(recipe: Recipe, out_of_reach: tuple[Any, Path], tmp_path: Path) -> None:
    what, out = asked(recipe, "size:1kB"), tmp_path / "run"

    def stop_in_the_third(event: Event, stop: StopToken) -> None:
        if isinstance(event, StageStarted) and event.stage == "search":
            begun.append(event.title)
            if len(begun) == 3:
                stop.set()

    begun: list[str] = []
    first = drive(what, out, None, stop_in_the_third)
    assert isinstance(first.error, Cancelled)
    kept = json.loads((out / "search.json").read_text())
    assert [one["title"] for one in kept["tried"]] == [title.removeprefix("Trying: ") for title in begun[:2]]
    second = resumed(out)
    assert begun[0] not in trials(second) and begun[1] not in trials(second)
    whole = out_of_reach[0].data
    told = [(one["title"], one["value"], one["kept"]) for one in whole["search"]["tried"]]
    assert [(one["title"], one["value"], one["kept"]) for one in second.data["search"]["tried"]] == told
    assert second.data["ptq"]["value"] == whole["ptq"]["value"]


def test_a_search_that_has_ended_is_not_done_again(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def stop_after(event: Event, stop: StopToken) -> None:
        if isinstance(event, StageFinished) and event.stage == "calibrate":
            stop.set()

    first = drive(asked(recipe, "bpw:6", "drop:1"), out, None, stop_after)
    assert isinstance(first.error, Cancelled) and trials(first)
    second = resumed(out)
    assert trials(second) == [] and second.data["search"]["met"] and second.data["search"]["tried"]
    assert [table for table in second.of(Table) if table.key == "search"]


def test_a_damaged_state_counts_as_none(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    drive(
        asked(recipe, "drop:0.5"),
        out,
        None,
        lambda event, stop: stop.set() if isinstance(event, StageFinished) and event.stage == "convert" else None,
    )
    for content in ("{", "[]", json.dumps({**json.loads((out / "search.json").read_text()), "tried": [{"title": 3}]})):
        (out / "search.json").write_text(content)
        seen = drive(asked(recipe, "drop:0.5"), tmp_path / f"other{len(content)}")
        assert seen.data["search"]["met"]
    assert resumed(out).data["search"]["met"]


def test_a_threshold_that_is_missed_names_the_worst_layers_and_the_cheapest_remedy(recipe: Recipe, tmp_path: Path) -> None:
    seen = drive(asked(recipe, preset="w4a4", threshold="sqnr:90"), tmp_path / "run")
    verdict, layers = seen.data["verdict"], seen.data["layers"]
    harms = {row["name"]: row["harm"] for row in layers if row["harm"] is not None}
    assert set(harms) == {"conv1", "conv2", "fc"} and all(harm > 0 for harm in harms.values())
    assert verdict["worst"][0]["layer"] == max(harms, key=harms.__getitem__)
    assert verdict["worst"][0]["share"] == pytest.approx(max(harms.values()) / sum(harms.values()), abs=1e-3)
    assert verdict["worst"][0]["layer"] in verdict["remedy"] and "the cheapest remedy is" in verdict["remedy"]
    assert verdict["remedy"] in [event.text for event in seen.of(Notice)]
    text = (tmp_path / "run" / "report.md").read_text()
    assert verdict["remedy"] in text
    rows = [line.split(" |")[0].strip("| ") for line in text.splitlines() if line.startswith(("| conv", "| fc"))]
    assert rows == sorted(rows, key=lambda name: -harms[name])


def test_a_limit_on_time_is_judged_by_what_was_timed(recipe: Recipe, tmp_path: Path) -> None:
    seen = drive(asked(recipe, "latency:1000ms", "drop:0.5"), tmp_path / "easy")
    (tried,) = seen.data["search"]["tried"]
    assert tried["latency"] > 0 and tried["latency_ms"] > 0 and tried["met"]
    seen = drive(asked(recipe, "latency:0.0001ms", "drop:0.5"), tmp_path / "hard")
    found, end = seen.data["search"], seen.of(Finished)[-1]
    assert not found["met"] and not end.met and "latency:" in end.text and all(one["latency_ms"] > 0.0001 for one in found["tried"])
