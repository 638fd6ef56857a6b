"""How far from a machine's limits a model is, from a report's figures."""

from __future__ import annotations

from typing import Any

import pytest

from engine.report.limits import reached, sentence

LIMITS = {"threads": 2, "kernel": "dnnl", "peak_ops_per_s": 200e9, "read_bytes_per_s": 20e9}


def times(p50: float, batch: int = 1, spread: float = 1.1) -> dict[str, float]:
    return {"p50": p50, "p95": p50 * spread, "batch": batch}


def network(**more: Any) -> dict[str, Any]:
    form = {"latency_ms": times(4.0), "latency_batched_ms": times(128.0, 64), "size_bytes": 12_000_000, "simulated": False}
    return {"ptq": {**form, **more}, "qat": None, "coverage": {"macs_total": 100_000_000}}


def test_a_network_reaches_its_operations_over_its_time() -> None:
    found = reached(network(), LIMITS)
    assert found is not None
    single, batched = found["reached"]
    # 100 million multiply-adds in 4 ms are 50 GOP/s, 64 times as many in 128 ms are 100; 12 MB in 4 ms are 3 GB/s.
    speeds = {"ops_per_s": pytest.approx(50e9), "bytes_per_s": pytest.approx(3e9)}
    assert single == {"workload": "at batch 1", "of_peak": 0.25, "of_bandwidth": 0.15, **speeds}
    assert batched == {"workload": "at batch 64", "ops_per_s": pytest.approx(100e9), "of_peak": 0.5}
    assert sentence(found) == (
        "Of what 2 threads reach here (200 GOP/s in a large int8 product of dnnl, 20.0 GB/s of a plain read, as measured): "
        "at batch 1 50.0 GOP/s (25 %), weights at 3.00 GB/s (15 %); at batch 64 100.0 GOP/s (50 %)."
    )


def test_the_form_that_is_kept_is_the_one_that_is_told_of() -> None:
    trained = {**network()["ptq"], "latency_ms": times(2.0), "kept": True}
    found = reached({**network(), "qat": trained}, LIMITS)
    assert found is not None and found["reached"][0]["of_peak"] == 0.5


@pytest.mark.parametrize(
    "form", [{"simulated": True}, {"latency_ms": times(4.0, spread=2.0)}, {"latency_ms": {}, "latency_batched_ms": {}}]
)
def test_times_that_say_nothing_of_kernels_reach_nothing(form: dict[str, Any]) -> None:
    assert reached(network(**form), LIMITS) is None


def decoder(*rows: tuple[str, str, int, int], actual: str = "w8 per-channel") -> dict[str, Any]:
    layers = [{"name": name, "kind": kind, "params": params, "bytes": size, "actual": actual} for name, kind, params, size in rows]
    form = {
        "latency_ms": times(10.0), "latency_batched_ms": times(100.0), "size_bytes": 10**9, "simulated": False, "tokens_per_second": {},
    }  # fmt: skip
    return {"baseline": {"metric": "perplexity"}, "ptq": form, "qat": None, "layers": layers}


BLOCK = ("h.0.fc", "Linear", 60, 60_000_000)


def test_a_token_reads_the_matrices_and_the_head_but_rows_of_no_embedding() -> None:
    own = decoder(("wte", "Embedding", 40, 40_000_000), BLOCK, ("lm_head", "Linear", 40, 40_000_000))
    tied = decoder(("wte", "Embedding", 40, 40_000_000), ("wpe", "Embedding", 4, 1_000_000), BLOCK, ("lm_head", "Linear", 0, 0))
    for report in (own, tied):
        found = reached(report, LIMITS)
        assert found is not None
        assert found["reached"] == [{"workload": "a token", "bytes_per_s": pytest.approx(10e9), "of_bandwidth": 0.5}]


def test_where_a_token_reads_some_experts_nothing_is_said() -> None:
    assert reached(decoder(BLOCK, ("h.0.experts.3.up", "Linear", 60, 60_000_000)), LIMITS) is None


def test_a_damaged_entry_is_passed_over() -> None:
    assert sentence({"reached": [{"workload": "at batch 1", "ops_per_s": "fast"}]}) == ""
    assert sentence({}) == ""


def test_the_report_says_it_below_its_figures() -> None:
    from engine.report.report import _limits

    found = reached(network(), LIMITS)
    assert _limits({"limits": found})[0].startswith("Of what 2 threads reach here")
    assert _limits({}) == []
