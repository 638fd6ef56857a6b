"""What is said of a form that was measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_language
import torch
from quantized_families import EIGHT, decoder_of

from engine.events.cancellation import StopToken
from engine.kernels.probe import KERNELS, Machine
from engine.lowering.modules import lowering
from engine.lowering.modules.runtime import Placement
from engine.recipe.recipe import Recipe, Threshold
from engine.report.verdict import times, verdict
from engine.runs.measuring import Measured, measure
from engine.tasks.decode_timing import Speed
from engine.tasks.forms_timing import timing_of
from engine.tasks.subject import Subject

FAST, SLOW = Speed(200, 50, 64, 32, 16, 400, 25), Speed(100, 25, 64, 32, 16, 700, 45)
TASK = tiny_language.task(torch.arange(120) * 7 % tiny_language.ROWS)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A tiny decoder that is measured with the given places of its matrices, twice as fast as fp32."""

    def times(steps: Any, *_: Any, **__: Any) -> Any:
        yield from ()
        return {name: FAST if name == "quantized" else SLOW for name in steps}

    def of(*placed: Placement) -> Measured:
        recipe = Recipe.make(model="gpt2")
        run: Any = SimpleNamespace(recipe=recipe, machine=Machine("AVX2", False, True, dict.fromkeys(KERNELS)), directory=tmp_path)
        task = TASK
        example = next(task.batches("train", batch=1, limit=1))
        low = lowering.ModulesLowering(Subject(task.language.model, task, example, "cpu", "", "", "modules"), run)
        decoder = decoder_of(task.language.model, EIGHT)
        places = {str(number): place for number, place in enumerate(placed)}
        monkeypatch.setattr(lowering, "running", lambda *_: (decoder.twin, places))
        monkeypatch.setattr("engine.tasks.forms_timing.tokens_per_second", times)
        quantized = low._running(decoder, {})
        found: Measured = tiny_language.finished(measure(task, quantized, low.baseline(), recipe, StopToken(), "cpu", 1.0))
        return found

    return of


def said(of: Measured) -> str:
    form = of.form
    found = verdict("ptq", TASK.metric, TASK.workloads, form.figures, of.baseline, form.quality["test"], Threshold.parse("drop:0.5"))
    return found.text


def test_times_are_those_of_the_median_and_of_the_slowest() -> None:
    found = timing_of(FAST)
    assert {key: times.to_dict() for key, times in found.latencies.items()} == {
        "decode": {"p50": 20.0, "p95": 25, "batch": 1}, "prefill": {"p50": 320.0, "p95": 400, "batch": 1},
    }  # fmt: skip
    assert found.details == {"tokens_per_second": {"prefill": 200, "decode": 50, "prompt": 64, "new": 32}}


def test_the_times_of_a_report_are_a_token_and_a_prompt(measured: Any) -> None:
    of = measured(Placement("dnnl dynamic", None, False))
    assert (of.form.figures.to_dict()["latency_ms"]["p50"], of.form.figures.to_dict()["latency_batched_ms"]["p50"]) == (20.0, 320.0)
    assert (of.baseline.to_dict()["latency_ms"]["p95"], of.baseline.to_dict()["latency_batched_ms"]["p95"]) == (45, 700)


def test_simulation_is_called_so_and_claims_no_speed(measured: Any) -> None:
    of = measured(Placement("simulation dynamic", "why", True))
    entry = of.form.figures.to_dict()
    assert entry["simulated"] and entry["kernel"] == "simulation dynamic" and entry["stored_layers"] == 1
    assert "simulated, so no speed is claimed" in said(of) and "faster" not in said(of)


@pytest.mark.parametrize(
    ("label", "stored", "kernel"),
    [("dnnl dynamic", False, "dnnl dynamic"), ("torch fp32, int4 stored", True, "torch fp32 on stored integers")],
)
def test_what_runs_is_named_with_its_speed(measured: Any, label: str, stored: bool, kernel: str) -> None:
    of = measured(Placement(label, None, stored))
    entry = of.form.figures.to_dict()
    assert not entry["simulated"] and entry["kernel"] == kernel and entry["speedup"] == {"decode": 2.0, "prefill": 2.0}
    assert "2.0× faster at one token after the other, 2.0× faster at reading" in said(of)
    assert ("1 layer is stored in few bits and computed in fp32 here" in said(of)) is stored


def test_a_ratio_that_was_rounded_to_nothing_is_said_and_not_divided_by() -> None:
    assert times(0.0, "faster", "slower") == "over 200× slower" and times(0.01, "faster", "slower") == "100.0× slower"
