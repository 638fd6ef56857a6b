"""A verdict that names the runtime in which the network is faster than here, before anything else."""

from __future__ import annotations

from typing import Any

from engine.report.report import Report
from engine.report.runtimes import ahead, led
from engine.runs import reexport
from qtui import text

VERDICT = {"chosen": "ptq", "threshold": "drop:0.01", "met": True, "text": "PTQ is chosen: 3.9× smaller, 2.0× faster at batch 1."}


def row(name: str, single: float, batched: float, spread: float = 1.1) -> dict[str, Any]:
    times = {"latency_ms": {"p50": single, "p95": single * spread}, "latency_batched_ms": {"p50": batched, "p95": batched * spread}}
    return {"format": name, "path": f"model.{name}", "runtime": f"{name} 1.0", "kernel": "int8", **times}


def report(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    fp32 = {**row("fp32", 9.0, 90.0), "kernel": "fp32", "path": ""}
    return {"baseline": None, "exports": list(rows), "runtimes": [fp32, *rows], "verdict": VERDICT, **more}


def test_the_verdict_begins_with_the_runtime_that_is_faster() -> None:
    found = led(report(row("safetensors", 3.0, 30.0), row("onnx", 2.0, 31.0), row("openvino", 2.5, 20.0)))
    assert found["verdict"]["text"] == (
        "Faster on this machine than this program's kernels: model.onnx in onnx 1.0 at batch 1 (2.00 ms to 3.00 ms); "
        "model.openvino in openvino 1.0 at batch 64 (20.00 ms to 30.00 ms). " + VERDICT["text"]  # type: ignore[operator]
    )
    assert {key: value for key, value in found["verdict"].items() if key != "text"} == {k: v for k, v in VERDICT.items() if k != "text"}


def test_one_runtime_that_is_faster_at_both_is_named_once() -> None:
    found = ahead(report(row("safetensors", 3.0, 30.0), row("onnx", 2.0, 20.0)))
    assert found.count("onnx 1.0") == 1 and "at batch 1 (2.00 ms to 3.00 ms) and at batch 64 (20.00 ms to 30.00 ms)" in found


def test_what_is_within_a_tenth_or_slower_or_fp32_changes_no_verdict() -> None:
    for found in (
        report(row("safetensors", 3.0, 30.0), row("onnx", 2.8, 28.0)),
        report(row("safetensors", 3.0, 30.0), row("onnx", 5.0, 50.0)),
        report(row("safetensors", 10.0, 100.0)),
        report(row("onnx", 1.0, 1.0)),
        report(),
    ):
        assert led(found) == found


def test_times_that_are_not_steady_name_nothing() -> None:
    assert ahead(report(row("safetensors", 3.0, 30.0), row("onnx", 2.0, 20.0, spread=1.6))) == ""
    assert ahead(report(row("safetensors", 3.0, 30.0, spread=1.6), row("onnx", 2.0, 20.0))) == ""


def test_a_file_whose_outputs_differ_is_not_named() -> None:
    differing = {**row("onnx", 1.0, 10.0), "parity": {"agreement": 0.5, "sqnr_db": 20.0, "compared": 256}}
    assert ahead(report(row("safetensors", 3.0, 30.0), differing)) == ""


def test_what_was_timed_at_another_hour_is_said_to_be() -> None:
    rows = report(row("safetensors", 6.0, 60.0), row("onnx", 4.0, 90.0), baseline={"metric": "perplexity"})
    assert ahead(rows).startswith(
        "Faster on this machine than this program's kernels, by timings of different hours: model.onnx in onnx 1.0"
    )
    assert "a token (4.00 ms to 6.00 ms)" in ahead(rows)


def test_another_export_says_it_anew_and_never_twice(tmp_path: Any) -> None:
    first = Report(led(report(row("safetensors", 3.0, 30.0), row("onnx", 2.0, 31.0))))
    rows = [first.data["runtimes"][0], row("safetensors", 3.0, 30.0), row("onnx", 2.9, 31.0), row("openvino", 1.0, 31.0)]
    second = reexport._save(tmp_path, first, [], rows)
    said = second.data["verdict"]["text"]
    assert said.startswith("Faster on this machine") and "openvino" in said and "onnx" not in said and said.endswith(VERDICT["text"])
    third = reexport._save(tmp_path, second, [], [rows[0], rows[1], row("openvino", 3.0, 30.0)])
    assert third.data["verdict"]["text"] == VERDICT["text"]


def test_the_app_shows_it_as_it_is_where_no_speed_is_claimed_of_the_forms() -> None:
    found = led(report(row("safetensors", 3.0, 30.0), row("onnx", 2.0, 20.0)))["verdict"]
    busy = {"ptq": {"latency_ms": {"p50": 1.0, "p95": 3.0}}}
    assert "model.onnx in onnx 1.0 at batch 1 (2.00 ms to 3.00 ms)" in text.verdict(found, busy)
