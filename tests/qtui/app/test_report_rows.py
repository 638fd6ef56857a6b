"""The report's tables, sentences, files and summary without a screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reports import FOLDED_LAYER, FP32_LAYER, told, write_run
from scripted_engine import MEASURED

from engine.events import event as ev
from engine.report.runtimes import TEXT, fastest
from engine.report.runtimes import runtimes as timed
from qtui import messages as ms
from qtui import text
from qtui.drawing.rows import Cell
from qtui.drawing.spans import plain
from qtui.reducer import reduce
from qtui.screens import calibrate_result as calibrated
from qtui.screens import report_rows as rows
from qtui.screens import report_words as words
from qtui.screens.report_exports import runtime_sentence, runtimes_subtitle
from qtui.screens.report_files import commands, export_lines, files_panel, graph_facts, run_files, side_lines
from qtui.screens.report_summary import summary
from qtui.state import Job, Run, State


def run_of(found: dict[str, Any], directory: str = "runs/one") -> Run:
    state = reduce(State(), ms.Opened(Path(directory)))
    return reduce(state, ms.ReportLoaded(found)).run


def texts(row: rows.Row) -> list[str]:
    return [cell.text if isinstance(cell, Cell) else cell for cell in row.cells]


def test_the_forms_stand_side_by_side_with_the_chosen_one_marked() -> None:
    run = run_of(told(qat=MEASURED["qat"], verdict={"chosen": "qat", "met": True, "text": "QAT is chosen: x."}))
    fp32, ptq, qat = rows.figure_rows(run)
    assert (fp32.glyph, ptq.glyph, qat.glyph) == (" ", " ", "▸")
    assert texts(ptq) == ["PTQ", "99.44 ±0.7", "1.9e-2", "31.2", "99.7", "0.31", "0.33", "1.80", "onednn int8"]
    assert texts(fp32)[2:5] == ["", "", ""]


def test_fp32_is_marked_where_it_stays() -> None:
    run = run_of(told(verdict={"chosen": "fp32", "met": False, "text": "fp32 stays: x."}))
    assert [row.glyph for row in rows.figure_rows(run)] == ["▸", " "]


def test_a_threshold_met_in_doubt_is_not_shown_as_met() -> None:
    said = "PTQ is chosen, in doubt: x. Threshold drop:0.005 is met, but the test cannot tell: 80 images are few."
    found = {"chosen": "ptq", "met": True, "text": said, "threshold": "drop:0.005", "doubt": "80 images are few"}
    run = run_of(told(verdict=found))
    glyph, head, rest = words.verdict_spans(State(run=run))
    assert words.verdict_title(State(run=run)).startswith("Verdict ─ threshold met, in doubt")
    assert glyph[1] == head[1] == "change" and head[0] == "PTQ is chosen, in doubt:" and "cannot tell: 80 images are few" in rest[0]
    assert calibrated.headline(run) == ("◐ met, in doubt: a drop of at most 0.5 points", "change")
    assert f"{said} " in summary(run) or said in summary(run)
    state = State(run=run, job=Job("run", "", asking="qat", default=False))
    assert "the test cannot tell" in calibrated.question(state)[0] and calibrated.question(state)[1] == "change"


def test_a_search_says_before_the_reasons_whether_its_target_is_met() -> None:
    run = run_of(told(search={"targets": ["size:200000B"], "met": True, "tried": []}))
    aimed, head = words.verdict_spans(State(run=run))[1:3]
    assert aimed == ("The target of at most 0.20 MB is met.", "good") and head[0].endswith(":")
    missed = words.verdict_spans(State(run=run_of(told(search={"targets": ["bpw:3"], "met": False}))))[1]
    assert missed == ("The target of at most 3 bits a weight is not met.", "harm")


def test_a_simulated_form_says_so() -> None:
    run = run_of(told(ptq={**MEASURED["ptq"], "simulated": True}))
    assert texts(rows.figure_rows(run)[1])[-1] == "simulated, no speed"


@pytest.mark.parametrize(
    ("label", "short"),
    [
        ("onednn.qconv_pointwise, onednn.qlinear_pointwise", "onednn qconv, qlinear"),
        ("onednn.qconv2d_pointwise.binary", "onednn qconv + sum"),
        ("torch fp32, channels-last", "torch fp32, channels-last"),
        (None, ""),
    ],
)
def test_kernels_are_named_shortly(label: str | None, short: str) -> None:
    assert text.kernels(label) == short


def test_layers_in_fp32_and_folded_ones_are_told_apart() -> None:
    run = run_of(told(layers=[*told()["layers"], FP32_LAYER, FOLDED_LAYER]))
    layers = rows.layers_of(run)
    drawn = rows.layer_rows(layers)
    assert [row.glyph for row in drawn] == ["●", "●", "●", "●", "○", "·"]
    assert drawn[4].role == "change" and drawn[5].role == "dim"
    assert rows.layers_title(layers, False) == "Layers ─ 6 ─ 1 in fp32 ─ 1 folded"
    assert "asked" in [column.key for column in rows.layer_columns(layers)]
    assert words.layer_sentence(layers[4], layers) == "stem.conv stays in fp32: its groups do not divide its channels."


def test_columns_that_would_say_nothing_are_left_out() -> None:
    layers = [{k: v for k, v in row.items() if k != "own_sqnr_db"} for row in told()["layers"]]
    keys = [column.key for column in rows.layer_columns(layers)]
    assert "asked" not in keys and "own" not in keys


def test_layers_are_ordered_by_the_noise_that_each_adds() -> None:
    layers = rows.layers_of(run_of(told(layers=[*told()["layers"], FP32_LAYER])))
    assert [row.key for row in rows.layer_rows(layers, by_harm=True)] == ["2", "1", "0", "3", "4"]
    assert words.layer_sentence(layers[2], layers).startswith("fc1 adds the most noise (25.0 dB)")


def test_what_only_events_told_of_a_layer_is_kept() -> None:
    layers = told()["layers"]
    without = [{k: v for k, v in row.items() if k != "own_sqnr_db"} for row in layers]
    state = reduce(State(), ev.Layers("ptq", tuple(layers)))
    run = reduce(state, ms.ReportLoaded(told(layers=without))).run
    assert rows.layers_of(run)[0]["own_sqnr_db"] == 38.1


def test_the_verdict_is_cut_to_its_lines() -> None:
    lines = words.paragraph([("●", "good"), ("PTQ is chosen:", "good"), ("word " * 60, "")], 40, 3)
    assert len(lines) == 3 and all(len(plain(line)) <= 40 for line in lines)
    assert plain(lines[0]).startswith("● PTQ is chosen: word") and plain(lines[2]).endswith("…")


@pytest.mark.parametrize("width", range(14, 60))
def test_a_verdict_that_is_cut_ends_at_a_word(width: int) -> None:
    said = "fp32 stays: threshold drop:0.0001 is not met, because batches are larger"
    lines = words.paragraph([("✗", "harm"), (said, "")], width, 2)
    text = " ".join(plain(line).strip() for line in lines)
    assert text.removesuffix(" …").split() == ["✗", *said.split()][: len(text.removesuffix(" …").split())]
    assert all(len(plain(line)) <= width for line in lines)


def test_a_run_without_a_report_says_what_is_missing() -> None:
    nothing = State()
    assert "1 goes to the models" in words.missing(nothing)[2]
    waiting = State(job=Job("run", "x", asking="quantize"), run=Run(model="m", at="strategy"))
    assert "waits for your choice on Strategy (3)" in words.missing(waiting)[2]
    exporting = State(job=Job("run", "x"), run=Run(model="m", at="report", doing="Exporting"))
    assert words.missing(exporting)[2] == "No report yet: exporting …"
    stopped = State(run=Run(model="m", at="train", stopped=True))
    assert "stopped on Train (5)" in words.missing(stopped)[2] and "r there resumes it" in words.missing(stopped)[2]
    failed = State(run=Run(model="m", at="calibrate", stages={"calibrate": "failed"}))
    assert words.missing(failed)[:2] == ("✗", "harm")


def test_exports_say_whether_they_were_read_back() -> None:
    entry = told()["exports"][0]
    assert [plain(line) for line in export_lines(entry, 38)] == [
        "● model.safetensors  safetensors", "  verified, agrees 100 %, exact", "  0.31 MB · torch 2.15.0 · 0.33 ms",
    ]  # fmt: skip
    unread = [plain(line) for line in export_lines({**entry, "parity": None}, 38)]
    assert unread[:2] == ["○ model.safetensors  safetensors", "  not verified"]
    worse = export_lines({**entry, "parity": {"max_abs": 1.2e-3, "agreement": 0.9972}}, 38)
    assert plain(worse[1]) == "  verified, agrees 99.7 %, Δ ≤ 1.2e-3"


def test_an_export_tells_its_own_accuracy_and_what_is_missing() -> None:
    entry = {**told()["exports"][0], "value": 0.9889, "latency_batched_ms": {"p50": 4.5}, "verified": True}
    assert plain(export_lines(entry, 68)[2]) == "  0.31 MB · torch 2.15.0 · 0.33 ms (×64 4.50) · top-1 98.89 %"
    missing = {**entry, "parity": None, "verified": False, "install": "uv pip install x", "reason": "X is not installed: uv pip install x"}
    assert [plain(line) for line in export_lines(missing, 68)][1::2] == ["  not verified", "  X is not installed: uv pip install x"]
    failed = {"format": "onnx", "path": "", "size_bytes": 0, "parity": None, "verified": False, "reason": "onnx needs onnx"}
    assert [plain(line).strip() for line in export_lines(failed, 38)] == ["✗ onnx  onnx", "not exported", "", "onnx needs onnx"]


def test_files_come_with_what_they_are_for(runs: Path) -> None:
    directory = write_run(runs, "one", told())
    (directory / "model.onnx").write_bytes(b"x" * 2000)
    found = run_files(directory)
    assert ("model.onnx", 2000, ("a model", "an exported model")) in found
    assert next(file for file in found if file[0] == "recipe.yaml")[2][0] == "run again"
    panel = files_panel(run_of(told(), str(directory)), found).plain
    assert f"qtui show {directory}" in panel and f"qtui run --recipe {directory}/recipe.yaml" in panel
    assert "engine.load_quantized(" in panel and "conv1" not in panel
    assert run_files(runs / "none") == ()


def test_commands_are_quoted_for_the_shell() -> None:
    assert commands("my runs/a")[0][0] == "qtui show 'my runs/a'"


def test_the_graphs_part_names_refused_pairs() -> None:
    refused = [{"conv": "a.conv", "bn": "a.bn", "reason": "a.conv is also read by add"}]
    graph = {**told()["graph"], "fuse_delta": 4.8e-7, "refused": refused}
    run = run_of(told(graph=graph))
    assert graph_facts(run) == [
        "14 nodes traced",
        "1 pair folded, output changed by 4.8e-7",
        "a.conv + a.bn not folded: a.conv is also read by add",
    ]
    assert "Graph" in "\n".join(plain(line) for line in side_lines(run, (), 38, 40))
    assert "Graph" not in "\n".join(plain(line) for line in side_lines(run, (), 38, 6))


def test_the_summary_is_markdown() -> None:
    text = summary(run_of(told(layers=[*told()["layers"], FP32_LAYER])))
    assert text.startswith("## simplecnn on digits\n") and "| **PTQ** | 99.44 ±0.7 |" in text
    assert "In fp32: stem.conv (its groups do not divide its channels)." in text and "run in `runs/one`" in text


def test_a_layers_panel_tells_all_that_is_known() -> None:
    run = run_of(told())
    panel = words.layer_panel(rows.layers_of(run)[2], run).plain
    assert "own SQNR    25.0 dB" in panel and "524,416 (96.2 %)" in panel and "four bits halve it" in panel


TEXT_REPORT = {
    "baseline": {"metric": "perplexity", "value": 65.1, "kernel": "torch fp32", "latency_ms": {"p50": 2.6, "p95": 2.6}},
    "ptq": {"value": 65.3, "kernel": "int4pack bf16", "latency_ms": {"p50": 1.4, "p95": 1.4}}, "qat": None,
}  # fmt: skip


def test_an_export_of_a_language_model_has_a_perplexity_and_tokens() -> None:
    entry = {
        "format": "onnx", "path": "model.onnx", "verified": True, "parity": {"agreement": 1.0, "max_abs": 0.0}, "value": 74.3252,
        "latency_ms": {"p50": 1.5}, "latency_batched_ms": {"p50": 60.0}, "runtime": "onnxruntime",
    }  # fmt: skip
    told = plain(export_lines(entry, 68, TEXT)[2])
    assert told == "  onnxruntime · 1.50 ms token, 60.00 ms prompt · perplexity 74.33"
    assert "ms" not in plain(export_lines({**entry, "format": "safetensors"}, 68, TEXT)[2])
    assert "compressed-tensors" in commands("x", True)[2][0] and "openvino" not in commands("x", True)[2][0]


def test_the_file_of_a_language_model_is_as_fast_as_the_form_that_it_holds() -> None:
    read_back = {"format": "safetensors", "path": "model.safetensors", "runtime": "torch", "latency_ms": {"p50": 6.9, "p95": 6.9}}
    native = timed({**TEXT_REPORT, "exports": [read_back]})[1]
    assert (native.single, native.kernel) == ((1.4, 1.4), "int4pack bf16")


def test_files_of_a_language_model_are_not_of_the_hour_of_its_run() -> None:
    figures = {"latency_ms": {"p50": 2.0, "p95": 2.0}, "latency_batched_ms": {"p50": 9.0, "p95": 9.0}}
    found = [{"format": name, "runtime": name, "path": path, "kernel": name, **figures}
             for name, path in (("fp32", ""), ("safetensors", ""), ("onnx", "model.onnx"))]  # fmt: skip
    report = {**TEXT_REPORT, "runtimes": found, "exports": []}
    assert [one.together for one in timed(report)] == [False, False, True]
    assert fastest(report).startswith("Fastest on this machine, by timings of different hours: ")
    run = Run(report={**report, "runtimes": [*found[:2], {**found[2], "latency_ms": {"p50": 1.0, "p95": 1.0}, "latency_batched_ms": {}}]})
    assert "each other file by itself at another hour" in runtime_sentence(run, "fp32")
    assert runtimes_subtitle(run) == "fastest: token onnx 1.00 ms · prompt engine.load_quantized 9.00 ms"
    quick = {**found[2], "latency_ms": {"p50": 1.0, "p95": 1.0}, "latency_batched_ms": {"p50": 1.0, "p95": 1.0}}
    assert runtimes_subtitle(Run(report={**report, "runtimes": [*found[:2], quick]})) == "fastest: onnx"


def test_the_noise_of_a_language_models_layer_is_that_of_its_weights_alone() -> None:
    layer = {"name": "transformer.wte", "actual": "w8", "kernel": "int8 rows", "sqnr_db": 40.0, "own_sqnr_db": 40.0, "reason": "preset w4"}
    assert "own" not in [column.key for column in rows.layer_columns([layer])]
    told = words.layer_panel(layer, Run(report={"layers": [layer]})).plain
    assert "of its rounded weights" in told and "all layers up to here" not in told
    other = {**layer, "name": "lm_head", "sqnr_db": 50.0, "own_sqnr_db": 50.0}
    assert words.layer_sentence(other, [layer, other]) == "lm_head: w8 on int8 rows, as preset w4 asks."


@pytest.mark.parametrize(
    ("actual", "kernel", "found"),
    [("w4 per-group 64, fp32 activations", "int4pack bf16", "stored"), ("w8 per-channel, a8 per-tensor", "dnnl.matmul", "integer"),
     ("w8 per-channel, fp32 activations", "torch fp32", "stored"), ("fp32", "torch fp32", "fp32")],
)  # fmt: skip
def test_only_integer_activations_make_integer_arithmetic(actual: str, kernel: str, found: str) -> None:
    assert rows.form({"actual": actual, "kernel": kernel}) == found
