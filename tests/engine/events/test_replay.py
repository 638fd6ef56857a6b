"""Every event, through JSON and back; and a run's events read from its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from driving import drive

from engine.errors import EngineError
from engine.events import event as ev
from engine.events.replay import from_dict, read
from engine.events.rows import ChannelRow
from engine.machine.usage import Usage
from engine.recipe.capabilities import BLOCK, CONVOLUTION, EMBEDDING, LINEAR, NOTHING, OUTSIDE, Capabilities
from engine.recipe.recipe import Recipe
from engine.recipe.spec import FP32, ActivationSpec, LayerSpec, WeightSpec
from engine.report.report import finite
from engine.runs.rundir import RunDir

BINS = ev.Bins(-1.0, 0.5, (3, 0, 4))
SPEC = LayerSpec(WeightSpec(4, "per-group", 64, "mse"), ActivationSpec(7, True, "entropy"))
RANGE = ev.RangeRow("x", ("conv1", "fc"), -2.0, 2.5, -1.5, 2.0, BINS, 128)
ROW = ev.LayerRow(
    "fc", "Linear", "fc", 650, (10, 64), SPEC, LayerSpec(WeightSpec()), FP32, "proposal", "why", "because", 0.25, "onednn", False, "no"
)
SAMPLES: tuple[ev.Event, ...] = (
    ev.Event(),
    ev.Detail(),
    ev.StageStarted("load", "Loading"),
    ev.StageFinished("load", 1.5),
    ev.Progress("calibrate", 3, 10, "img", 2.0, 3.5),
    ev.Notice("text", "warning"),
    ev.Table("plan", "Plan", ("a", "b"), (("1", "2"), ("3", ""))),
    ev.Ask("qat", "Train?", False),
    ev.EpochFinished(1, 3, 0.5, 0.9, 0.01, True, "qat"),
    ev.Measured("ptq", {"value": 0.98, "error": {"mse": 1e-7}, "list": [1, None]}),
    ev.Finished("runs/a", True, "done"),
    ev.Stopped("runs/a", "qat"),
    ev.Failed("text", "traceback"),
    ev.Setting("runs/a", {"model": "m", "rules": []}, {"isa": "AVX2", "vnni": False}),
    ev.Graph("fused", (ev.NodeRow("call_module", "fc", "fc", "x", "", "N×10", 650, 0.5), ev.NodeRow("output", "o", "o", "", "", "", 0))),
    ev.Pairs((ev.PairRow("conv1", "bn1", "conv1", "bn1", None, 1e-6), ev.PairRow("a", "b", "c", "d", "why")), 1e-6, 2.0, 1.5),
    ev.Planned((ROW, replace(ROW, editable=True, obstacle=None)), "default", 7, 12345),
    ev.Needs(10**9, 10**8, "memory at most 1.0 GB", 2 * 10**9, None, 90.5, "too little"),
    ev.Sensitivities(
        (ev.LayerSensitivity("fc", "w4", 21.5, 1e-4, 325), ev.LayerSensitivity("fc", "a4", 18.0, 2e-4, 2600, 0.01)), "kl", 64, 1.5, 1
    ),
    ev.Ranges(64, 64, (RANGE, replace(RANGE, settled=None)), True),
    ev.Weights((ev.WeightRow("fc", -1.0, 1.0, -0.5, 0.5, 0.1, 1.0, 10, BINS),)),
    ev.Inspected(
        (
            ev.RoundedLayer(
                "fc",
                LayerSpec(WeightSpec(2)),
                10,
                BINS,
                BINS,
                (-1.0, 0.0, 1.0),
                (-2.0,),
                (1.5,),
                (ChannelRow(7, -2.0, 2.0),),
                1,
                0.5,
                17.9,
                0.21,
                0.0003,
                RANGE,
            ),
        )
    ),
    ev.MachineUse(12.5, (Usage(0, "here", 1.5, 2.0, 10**9, 2 * 10**9, 5, None, None), Usage(1, "there", 0.0, 2.0, 1, 1))),
    ev.Layers("qat", ({"name": "fc", "sqnr_db": None, "own_sqnr_db": 40.5},)),
    ev.Samples("to be", {"fp32": "or not", "quantized": "or not to"}),
    ev.Changes("ptq", 360, 2, 1, 1, (ev.ChangeRow(17, "cat", "cat", "dog", 1.0),)),
    ev.Judgement("ptq", {"chosen": "ptq", "met": True}),
    ev.Step("qat", 1, 3, 10, 30, None, 0.01),
)


def through_json(event: ev.Event) -> ev.Event | None:
    return from_dict(json.loads(json.dumps(finite(event.to_dict()), allow_nan=False)))


def test_a_plan_of_an_earlier_version_names_its_rounding_by_the_scale() -> None:
    told = ev.Planned((ROW,), "default", 7, 12345).to_dict()
    for name, scale in (("requested", "mse"), ("actual", "minmax")):
        weights = told["layers"][0][name]["weights"]
        weights |= {"scale": scale, "method": "nearest"}
    event = from_dict(json.loads(json.dumps(finite(told))))
    assert isinstance(event, ev.Planned)
    found = [spec.weights.method for spec in (event.layers[0].requested, event.layers[0].actual) if spec.weights]
    assert found == ["mse", "nearest"]


@pytest.mark.parametrize(
    ("kind", "where", "editable", "found"),
    [
        ("Conv1D", "block", True, BLOCK), ("Embedding", "outside", True, EMBEDDING), ("Linear", "outside", False, OUTSIDE),
        ("LayerNorm", "", False, NOTHING), ("Conv2d", "", True, CONVOLUTION), ("Linear", "", True, LINEAR),
    ],
)  # fmt: skip
def test_a_plan_of_an_earlier_version_says_where_a_decoders_matrix_is(kind: str, where: str, editable: bool, found: Capabilities) -> None:
    told = ev.Planned((replace(ROW, kind=kind, editable=editable),), "default", 8, 12345).to_dict()
    row = told["layers"][0]
    row.pop("capabilities")
    row["decoder"] = where
    event = from_dict(json.loads(json.dumps(finite(told))))
    assert isinstance(event, ev.Planned) and event.layers[0].capabilities == found


def test_there_is_a_sample_of_every_event() -> None:
    kinds = {kind for kind in vars(ev).values() if isinstance(kind, type) and issubclass(kind, ev.Event)}
    assert kinds == {type(sample) for sample in SAMPLES}


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: type(event).__name__)
def test_an_event_comes_back(event: ev.Event) -> None:
    back = through_json(event)
    assert back == event and type(back) is type(event) and back.to_dict() == event.to_dict()
    assert from_dict(event.to_dict()) == event


def test_numbers_that_were_not_finite_come_back_as_none_of_them() -> None:
    back = through_json(replace(RANGE_EVENT, rows=(replace(RANGE, low=-math.inf, clip_high=math.nan),)))
    assert isinstance(back, ev.Ranges) and math.isnan(back.rows[0].low) and math.isnan(back.rows[0].clip_high)
    assert back.rows[0].high == 2.5
    optional = through_json(ev.Step("qat", 1, 3, 10, 30, math.nan, 0.01))
    assert isinstance(optional, ev.Step) and optional.loss is None


RANGE_EVENT = ev.Ranges(64, 64, (RANGE,), True)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"event": None},
        {"event": "Unheard"},
        {"event": "LayerRow"},
        {"event": "Any", "text": "x"},
        {"event": "Notice"},
        {"event": "Notice", "text": 3},
        {"event": "Notice", "text": "x", "level": "loud"},
        {"event": "Notice", "text": "x", "level": []},
        {"event": "Progress", "stage": "a", "done": True, "total": 2, "unit": "img"},
        {"event": "Progress", "stage": "a", "done": 1.5, "total": 2, "unit": "img"},
        {"event": "StageFinished", "stage": "a", "seconds": "2"},
        {"event": "StageFinished", "stage": "a", "seconds": 10**400},
        {"event": "Table", "key": "k", "title": "t", "columns": "ab", "rows": []},
        {"event": "Table", "key": "k", "title": "t", "columns": ["a"], "rows": [[1]]},
        {"event": "Weights", "rows": [{"path": "fc"}]},
        {"event": "Weights", "rows": None},
        {"event": "Layers", "which": "fp32", "rows": []},
        {"event": "Measured", "which": "ptq", "figures": [1]},
    ],
)
def test_what_does_not_fit_is_none(content: dict[str, Any]) -> None:
    assert from_dict(content) is None


def test_a_key_of_a_later_version_is_passed_over_and_a_default_is_filled_in() -> None:
    assert from_dict({"event": "Notice", "text": "x", "colour": "red"}) == ev.Notice("x")


def test_reading_passes_over_what_is_no_event(tmp_path: Path) -> None:
    lines = [b'{"event": "Notice", "text": "a"}', b"", b"\xff\xfe", b"[1]", b'{"event": "Unheard"}', b"[" * 3000]
    (tmp_path / "events.jsonl").write_bytes(b"\n".join([*lines, b'{"event": "Notice", "text": "b"}', b'{"event": "Notice", "te']))
    assert read(tmp_path) == (ev.Notice("a"), ev.Notice("b"))
    with pytest.raises(EngineError, match="give the folder of a run"):
        read(tmp_path / "none")


def test_a_folder_keeps_only_the_last_ranges(tmp_path: Path) -> None:
    where = RunDir(tmp_path / "run", "m", "d", 0)
    for event in (replace(RANGE_EVENT, final=False), RANGE_EVENT, ev.Progress("a", 1, 2, "img")):
        where.event(event)
    where.close()
    assert read(tmp_path / "run") == (RANGE_EVENT,)


def test_a_run_is_read_as_it_was_seen(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    def ticks(event: ev.Event) -> bool:
        return isinstance(event, ev.Progress) or (isinstance(event, ev.Ranges) and not event.final)

    outcome = drive(tiny(), tmp_path / "run", attended=True)
    wanted = [finite(event.to_dict()) for event in outcome.events if not ticks(event)]
    assert [finite(event.to_dict()) for event in read(tmp_path / "run")] == wanted
