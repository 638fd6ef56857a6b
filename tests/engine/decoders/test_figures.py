"""What is said of a form that was measured."""

from __future__ import annotations

from typing import Any

import pytest
from engine.report.language_figures import Seen, latencies, quantized_entry, verdict
from quantized_families import EIGHT, family

from engine.lowering.modules.runtime import Placement
from engine.recipe.recipe import Threshold
from engine.tasks.decode_timing import Speed
from engine.tasks.language_evaluation import Closeness, Judged
from engine.tasks.perplexity import perplexity_of

FP32, IT = (perplexity_of([(30.0 + more, 10), (31.0, 10)], 16, 8) for more in (0.0, 0.01))
JUDGED = Judged(FP32, IT, Closeness(1e-4, 30.0, 0.99, 1e-3))
SEEN = Seen(JUDGED, JUDGED, Speed(200, 50, 64, 32, 16, 400, 25), Speed(100, 25, 64, 32, 16, 700, 45))


def entry(*placed: Placement) -> dict[str, Any]:
    return quantized_entry(SEEN, family("gpt2", EIGHT), dict(enumerate(placed)), 1000, 2000, 1.0)  # type: ignore[arg-type]


def said(of: dict[str, Any]) -> str:
    return str(verdict("ptq", SEEN, of, 4000, Threshold.parse("drop:0.5"), None)["text"])


def test_times_are_those_of_the_median_and_of_the_slowest() -> None:
    assert latencies(SEEN.speed) == {
        "latency_ms": {"p50": 20.0, "p95": 25, "batch": 1}, "latency_batched_ms": {"p50": 320.0, "p95": 400, "batch": 1},
    }  # fmt: skip


def test_simulation_is_called_so_and_claims_no_speed() -> None:
    it = entry(Placement("simulation dynamic", "why", True))
    assert it["simulated"] and it["kernel"] == "simulation dynamic" and it["stored_layers"] == 1
    assert "simulated, so no speed is claimed" in said(it) and "faster" not in said(it)


@pytest.mark.parametrize(
    ("label", "stored", "kernel"),
    [("dnnl dynamic", False, "dnnl dynamic"), ("torch fp32, int4 stored", True, "torch fp32 on stored integers")],
)
def test_what_runs_is_named_with_its_speed(label: str, stored: bool, kernel: str) -> None:
    it = entry(Placement(label, None, stored))
    assert not it["simulated"] and it["kernel"] == kernel and it["speedup"] == {"decode": 2.0, "prefill": 2.0}
    assert "2.0× faster at one token after the other, 2.0× faster at reading" in said(it)
