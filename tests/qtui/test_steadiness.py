"""Timings that are not steady are told as such, and nothing is called faster by them."""

from __future__ import annotations

from typing import Any

import pytest

from engine.report.steadiness import unsteady
from qtui import text
from qtui.screens.calibrate_result import facts
from qtui.screens.report_rows import figure_rows
from qtui.state import Run


def form(single: tuple[float, float], batched: tuple[float, float], **more: Any) -> dict[str, Any]:
    pairs = (("latency_ms", single, 1), ("latency_batched_ms", batched, 64))
    return {"value": 0.9, "metric": "accuracy", **{k: {"p50": p, "p95": q, "batch": b} for k, (p, q), b in pairs}, **more}


@pytest.mark.parametrize(
    ("single", "batched", "odd"),
    [((0.3, 0.4), (6.0, 7.0), False), ((0.3, 0.46), (6.0, 7.0), True), ((0.3, 0.4), (6.0, 9.5), True), ((7.0, 7.5), (6.0, 6.5), True)],
)
def test_times_that_spread_or_run_backwards_are_not_steady(single: tuple[float, float], batched: tuple[float, float], odd: bool) -> None:
    found = form(single, batched)
    assert unsteady(found) is odd
    assert any("p50 ~" in cell for cell in text.figures(found, "accuracy")) is odd


def test_what_is_not_steady_is_dim_and_about() -> None:
    run = Run(measured={"baseline": form((0.3, 0.4), (6.0, 7.0)), "ptq": form((0.3, 2.0), (2.0, 2.1), kernel="onednn.qconv2d")})
    steady, odd = figure_rows(run)
    cells = {c.text: c.role for c in odd.cells if not isinstance(c, str)}
    assert cells["~0.30"] == cells["~2.00"] == "dim"
    assert not any("~" in (c if isinstance(c, str) else c.text) for c in steady.cells)
    assert "~6.00 → ~2.00 ms, not steady," in " ".join(facts(run))


def test_the_tokens_of_a_language_model_are_no_batch_of_its_prompts() -> None:
    found = form((7.0, 7.5), (6.0, 6.5), tokens_per_second={"decode": 140.0, "prefill": 9000.0})
    assert not unsteady(found)


@pytest.mark.parametrize(
    "pace", ["2150.0× faster at batch 1, 1.9× faster at batch 64", "about as fast as fp32 at batch 1, 1.2× slower at batch 64"]
)
def test_a_verdict_claims_no_speed_that_is_not_steady(pace: str) -> None:
    said = {"text": f"PTQ is chosen: 99.7% on the test split (±0.8), the same as fp32; 7.1× smaller; {pace}. Threshold drop:0.005 is met."}
    steady, odd = form((0.3, 0.4), (6.0, 7.0)), form((0.3, 2.0), (2.0, 2.1))
    assert pace in text.verdict(said, {"baseline": steady, "ptq": steady})
    shown = text.verdict(said, {"baseline": steady, "ptq": odd})
    assert "batch" not in shown and shown.endswith("7.1× smaller; its times are not steady, so no speed is claimed.")
