"""What the calibration's screen lists and says: pure functions of a run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scripted_engine import MEASURED, WEIGHTS, layer_rows, ranges, report, verdict

from engine.events import event as ev
from engine.recipe.capabilities import BLOCK, of_decoder
from engine.recipe.spec import FP32, ActivationSpec, LayerSpec, WeightSpec
from qtui import subject
from qtui.drawing.columns import arrange
from qtui.drawing.rows import Cell, measure
from qtui.drawing.spans import plain
from qtui.screens import calibrate_layers as layers
from qtui.screens import calibrate_ranges as rg
from qtui.screens import calibrate_result as result
from qtui.screens import calibrate_work as work
from qtui.state import Job, Run, State
from qtui.text import small

WEIGHT_ROWS = {row.path: row for row in WEIGHTS}


def measured(met: bool = True, threshold: str | None = None) -> Run:
    judged = verdict("ptq", met)
    if threshold:
        judged["threshold"] = threshold
    return Run(
        model="simplecnn", at="calibrate", measured={k: MEASURED[k] for k in ("baseline", "ptq")}, layers={"ptq": layer_rows()},
        judged={"ptq": judged}, recipe={"qat": {"epochs": 5}},
    )  # fmt: skip


def asking(run: Run, default: bool) -> State:
    return State(job=Job("run", "run", asking="qat", default=default), run=run)


def text(cell: str | Cell) -> str:
    return cell.text if isinstance(cell, Cell) else cell


def test_ranges_settle_one_by_one() -> None:
    run = Run(ranges=ranges(192, 512), weights=WEIGHT_ROWS)
    rows = rg.rows(run)
    assert [text(row.cells[1]) for row in rows] == ["64", "128", "moving", "moving"]
    assert [row.glyph for row in rows] == ["●", "●", "◐", "◐"]
    assert [cell.bar for row in rows if isinstance(cell := row.cells[1], Cell)] == [1 - 64 / 192, 1 - 128 / 192, 0, 0]
    assert rg.settled(run) == (2, 4)
    assert "It still moves." in rg.sentence(run, "fc1")
    assert "Settled after 64 images." in rg.sentence(run, "conv1")


def test_layers_without_a_range_are_listed_by_their_weights() -> None:
    found = ranges(512, 512, final=True)
    run = Run(ranges=replace(found, rows=found.rows[:1]), weights=WEIGHT_ROWS)
    assert [place.key for place in rg.places(run)] == ["conv1", "weights conv2", "weights fc1", "weights fc2"]
    assert "fp32 activations" in rg.sentence(run, "weights fc1")
    assert rg.no_values(run, rg.find(run, "weights fc1")) == "stay fp32: weights only"


def test_values_are_named_by_who_reads_them() -> None:
    row = replace(ranges(512, 512).rows[0], name="relu_1", layers=("block.conv1", "block.down", "c"))
    run = Run(ranges=ev.Ranges(512, 512, (row,), True), weights={})
    (place,) = rg.places(run)
    assert (place.key, place.label) == ("relu_1", "block.conv1 +2")
    assert "block.conv1 and 2 others read" in rg.sentence(run, "relu_1")


def test_nothing_yet() -> None:
    assert rg.rows(Run()) == () and rg.find(Run(), None) is None
    assert "Calibration runs" in rg.sentence(Run(), None)


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.0, 4.0, 0.0), (0.0, 3.0, 0.25), (1.0, 3.0, 0.5), (0.0, 2.5, 0.375), (9.0, 10.0, 1.0)]
)
def test_clipped(low: float, high: float, expected: float) -> None:
    assert rg.clipped(ev.Bins(0.0, 1.0, (1, 1, 1, 1)), low, high) == pytest.approx(expected)


def test_clipped_of_nothing() -> None:
    assert rg.clipped(ev.Bins(0.0, 1.0, (0, 0)), 0, 1) == 0 and rg.clipped(ev.Bins(0.0, 0.0, (3,)), 0, 1) == 0


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (6.31, "6.31"), (0.00123, "0.0012"), (123.4, "123.4"), (98765.4, "98765"), (-0.9, "-0.90"), (math.nan, "–")],
)
def test_figure(value: float, shown: str) -> None:
    assert rg.figure(value) == shown


def test_an_end_of_the_grid_beside_the_last_value_clips_nothing() -> None:
    row = replace(ranges(512, 512).rows[0], low=0.0, high=8.9, clip_high=8.85)
    assert rg.cut_off(row) == 0 and rg.cut_off(replace(row, clip_high=6.0)) > 0
    assert "covers all of them" in rg.sentence(Run(ranges=ev.Ranges(512, 512, (row,), True)), "conv1")


def test_the_zeros_of_a_relu_are_not_hidden_by_a_clip_that_cuts_nothing() -> None:
    row = ranges(512, 512).rows[0]
    assert rg.cut_low(row) is None
    assert rg.cut_low(replace(row, low=-3.0, clip_low=-1.0)) == -1.0
    assert rg.cut_low(WEIGHTS[0]) == -0.9


def test_the_facts() -> None:
    assert result.facts(measured()) == (
        "99.72 → 99.44 % (±0.7)", "error 1.9e-2", "SQNR 31.2 dB", "2.18 → 0.31 MB", "6.20 → 1.80 ms at batch 64 on onednn int8",
    )  # fmt: skip
    assert result.facts(Run()) == ()
    assert "agreement 99.72 %" in result.facts(measured(threshold="agreement:0.99"))


def test_the_facts_of_a_report_with_holes() -> None:
    holes = {**MEASURED["ptq"], "error": {"mse": None, "sqnr_db": None}, "latency_batched_ms": None, "simulated": True}
    run = replace(measured(), measured={"ptq": holes})
    assert result.facts(run) == ("99.44 % (±0.7)", "0.31 MB", "0.33 ms at batch 1 simulated")


def test_facts_are_packed_whole() -> None:
    assert result.packed(("aaaa", "bbb", "cc"), 10) == ("aaaa   bbb", "cc")
    assert result.packed(("much too long",), 6) == ("much …",)


def test_headline_and_question() -> None:
    assert result.headline(measured()) == ("● met: a drop of at most 0.5 points", "good")
    assert result.headline(measured(met=False)) == ("✗ not met: a drop of at most 0.01 points", "harm")
    assert result.headline(Run()) == ("", "")
    text, role = result.question(asking(measured(met=False), default=True))
    assert text == "The drop of 0.28 points is over the threshold of 0.01: t trains for 5 epochs, n goes on without." and role == "change"
    text, role = result.question(asking(measured(), default=False))
    assert text == "The drop of 0.28 points is under the threshold of 0.5: training is not needed. n makes the report, t trains anyway."
    assert role == "good"
    assert result.question(State(run=measured())) == ("", "")


@pytest.mark.parametrize(
    ("threshold", "met", "expected"),
    [
        ("mse:0.01", False, "The error of 1.9e-2 is over the threshold of 0.01"),
        ("sqnr:30", True, "The SQNR of 31.2 dB is over the threshold of 30 dB"),
        ("sqnr:40", False, "The SQNR of 31.2 dB is under the threshold of 40 dB"),
        ("agreement:0.9", True, "The agreement of 99.72 % is over the threshold of 90 %"),
        ("mse:1e-5", False, "The error of 1.9e-2 is over the threshold of 1e-5"),
        ("drop:0.005", False, "The drop of 0.28 points is under the threshold of 0.5 on test, but not on validation"),
        ("nonsense", True, ""),
        ("drop:", True, ""),
    ],
)  # fmt: skip
def test_reasons_by_metric(threshold: str, met: bool, expected: str) -> None:
    assert result.reason(measured(met, threshold)) == expected


def test_less_room_says_less() -> None:
    state = asking(measured(met=False), default=True)
    tall, low, tiny = ([plain(line) for line in result.verdict_lines(state, 76, height)] for height in (24, 20, 12))
    assert any("fp32 stays" in line for line in tall) and not any("fp32 stays" in line for line in low)
    assert tiny == ["✗ 99.72 → 99.44 % (±0.7)   2.18 → 0.31 MB", "t trains for 5 epochs, n goes on without."]


def test_a_reopened_run_is_judged_by_its_report() -> None:
    run = Run(report=report("d"), measured={"ptq": MEASURED["ptq"]})
    assert result.headline(run)[0] == "● met: a drop of at most 0.5 points"
    assert result.judgement(Run(report=report("d", qat=True))) == {}


@pytest.mark.parametrize(("met", "said"), [(True, "is met"), (False, "is not met")])
def test_a_reopened_run_says_whether_its_target_is_met(met: bool, said: str) -> None:
    found = {**report("d"), "search": {"targets": ["size:200000B"], "met": met}}
    lines = result.verdict_lines(State(run=Run(report=found, measured={"ptq": MEASURED["ptq"]})), 76, 24)
    (line,) = (line for line in lines if "target" in plain(line))
    assert plain(line) == f"The target of at most 0.20 MB {said}." and line[0][1] == ("good" if met else "harm")


def test_layers_by_harm_and_as_in_the_graph() -> None:
    run = measured()
    assert [row.key for row in layers.rows(run, "harm")] == ["fc1", "conv2", "conv1", "fc2"]
    assert [row.key for row in layers.rows(run, "graph")] == ["conv1", "conv2", "fc1", "fc2"]
    first = layers.rows(run, "harm")[0]
    assert [text(cell) for cell in first.cells] == ["fc1", "w4 g32 · a8", "onednn int8", "25.0", "24.3", "96.2", "9"]
    assert not any(isinstance(cell, Cell) and cell.bar is not None for cell in first.cells)
    assert layers.rows(run, "harm", bars=True)[0].cells[3] == Cell("25.0", "", 1.0)


def test_harm_folded_and_kept_layers() -> None:
    rows = (
        {**layer_rows()[0], "own_sqnr_db": 12.0},
        {**layer_rows()[1], "actual": "fp32", "own_sqnr_db": None, "sqnr_db": None},
        {**layer_rows()[2], "name": "bn1", "actual": "folded", "own_sqnr_db": None, "sqnr_db": None},
    )
    run = replace(measured(), layers={"ptq": rows})
    found = layers.rows(run, "harm")
    assert [(row.key, row.glyph) for row in found] == [("conv1", "✗"), ("conv2", "–"), ("bn1", "–")]
    assert "25.1 %" in layers.sentence(run, "conv1") and "e changes its strategy" in layers.sentence(run, "conv1")
    assert "stays in fp32" in layers.sentence(run, "conv2") and "folded into" in layers.sentence(run, "bn1")


def test_layers_of_a_run_that_kept_less() -> None:
    rows = tuple({k: v for k, v in row.items() if k != "own_sqnr_db"} for row in layer_rows())
    run = replace(measured(), layers={"qat": rows})
    assert layers.form(run) == "qat"
    assert [row.key for row in layers.rows(run, "harm")] == ["fc1", "fc2", "conv2", "conv1"]
    assert "its own was not measured" in layers.sentence(run, "fc1")
    assert layers.rows(Run(), "harm") == () and layers.sentence(Run(), None) == layers.NOT_MEASURED


def test_epochs_that_a_person_types() -> None:
    assert [result.wrong_epochs(value) is None for value in ("1", "5", "1000", "0", "1001", "-3", "2.5", "", "x", "²")] == [True] * 3 + [
        False
    ] * 7


def test_the_line_of_work() -> None:
    run = Run(at="calibrate", doing="Calibrating on 512 training images", progress=ev.Progress("calibrate", 384, 512, "img", 2140.0, 61.0))
    state = State(job=Job("run", "run"), run=run)
    assert work.working(state) and work.title(state) == "Calibrating on 512 training images ─ 384 of 512"
    assert work.line(state) == (384, 512, "2,140 img/s", "1 min 01 s left")
    assert work.line(replace(state, job=Job("run", "run", paused=True))) == (384, 512, "paused: p goes on", "")
    assert work.line(replace(state, job=Job("run", "run", stopping=True), run=replace(run, progress=None))) == (0, 1, "stopping …", "")
    assert not work.working(State(run=run)) and not work.working(asking(run, True))


def test_the_line_of_work_and_the_subject_tell_the_same_part() -> None:
    half = ev.Progress("calibrate", 447, 512, "windows", 0.04, 61.0)
    state = State(job=Job("run", "run"), run=Run(at="calibrate", progress=half))
    assert subject.doing(state) == "87 %" and work.line(state)[2] == "25 s each"
    paused = replace(state, job=Job("run", "run", paused=True))
    assert subject.doing(paused) == "paused: 4, then p"
    assert subject.doing(replace(paused, run=replace(state.run, at="train"))) == "paused: 5, then p"
    assert [small(value) for value in (1.8e-2, 2.9e-6, 1.5e-12)] == ["1.8e-2", "2.9e-6", "1.5e-12"]


def decoder_run() -> Run:
    """An embedding whose weights are known, and no ranges yet but those of nothing."""
    layers = tuple(
        ev.LayerRow(path, kind, path, 100, (512, 256), FP32, FP32, FP32, "", "", "", 0.1, "", True, capabilities=of_decoder(kind, True))
        for path, kind in (("transformer.wte", "Embedding"), ("transformer.h.0.c_fc", "Conv1D"))
    )
    weights = {row.path: ev.WeightRow(row.path, -1.0, 1.0, -1.0, 1.0, 0.5, 2.0, 512, ev.Bins(-1.0, 0.5, (1, 2, 2, 1))) for row in layers}
    return Run(plan=ev.Planned(layers, "default", 8, 1000), weights=weights, ranges=ev.Ranges(8, 8, (), True))


def test_an_embedding_reads_no_values_and_has_rows() -> None:
    run = decoder_run()
    said = rg.sentence(run, "weights transformer.wte")
    assert said.startswith("wte looks rows up") and said.endswith("The widest row is 4 times the narrowest.")
    assert rg.weights_title(run, run.weights["transformer.wte"]) == "wte ─ weights ─ 512 rows"
    assert "token ids" in rg.no_values(run, rg.find(run, "weights transformer.wte"))
    assert "windows of text" in rg.waiting(run) and "images" in rg.waiting(Run())


def test_outlier_channels_stay_where_there_is_little_room() -> None:
    last = {column.key: column.priority for column in rg.columns(decoder_run())}
    assert last["outliers"] > last["high"] and "outliers" not in [column.key for column in rg.columns(Run())]


def read_by(spec: LayerSpec, path: str = "transformer.h.0.attn.c_attn") -> Run:
    """A decoder's layer with its values seen, planned as ``spec``."""
    row = ev.LayerRow(path, "Conv1D", path, 100, (768, 256), spec, spec, spec, "", "", "", 0.1, "", True, capabilities=BLOCK)
    seen = ev.RangeRow(path, (path,), -2.0, 3.0, -1.0, 1.5, ev.Bins(-2.0, 1.0, (1, 4, 9, 4, 1)), 8, 2, 256)
    return Run(plan=ev.Planned((row,), "w4", 8, 1000), ranges=ev.Ranges(8, 8, (seen,), True))


@pytest.mark.parametrize(
    ("asked", "said"),
    [(None, "they stay in floats, weights alone are rounded"), (ActivationSpec(8, dynamic=True), "each token gets a grid of its own"),
     (ActivationSpec(8), "the grid ends at -1.00 and 1.50")],
)  # fmt: skip
def test_values_without_a_fixed_grid_have_no_clips(asked: ActivationSpec | None, said: str) -> None:
    run = read_by(LayerSpec(WeightSpec(4), asked))
    keys = [column.key for column in rg.columns(run)]
    row = rg.rows(run)[0]
    assert said in rg.sentence(run, "transformer.h.0.attn.c_attn") and len(row.cells) == len(keys)
    fixed = asked is not None and not asked.dynamic
    assert ("clip" in keys) == fixed and ("high" in keys) != fixed
    assert run.ranges is not None and rg.cuts(run, run.ranges.rows[0]) == fixed


def test_names_of_layers_are_read_whole_at_80_columns() -> None:
    run = read_by(LayerSpec(WeightSpec(4)))
    columns, rows = rg.columns(run), rg.rows(run)
    plan = arrange(columns, measure(columns, rows), 36, glyph=1)
    shown = {columns[place.index].key: place.width for place in plan.places}
    assert shown["layer"] >= len("0.attn.c_attn") and "outliers" in shown
    weights = ev.WeightRow("transformer.h.0.attn.c_attn", -1, 1, -1, 1, 0.5, 2.0, 768, ev.Bins(-1, 1, (1, 1)))
    assert rg.weights_title(run, weights, 34) == "0.attn.c_attn ─ weights"
    paths = ("layer1.0.conv1", "layer1.0.conv2")
    seen = tuple(ev.RangeRow(path, (path,), -2.0, 3.0, -1.0, 1.5, ev.Bins(-2.0, 1.0, (1, 4, 9, 4, 1)), 8, 2, 256) for path in paths)
    images = Run(ranges=ev.Ranges(8, 8, seen, True))
    columns, rows = rg.columns(images), rg.rows(images)
    assert arrange(columns, measure(columns, rows), 36, glyph=1).places[0].width >= len(paths[0])
    found = tuple({**row, "name": f"layer1.{i}.conv1", "kernel": "dnnl.convolution+sum"} for i, row in enumerate(layer_rows()))
    columns, rows = layers.columns(Run(layers={"ptq": found})), layers.rows(Run(layers={"ptq": found}), "harm")
    assert arrange(columns, measure(columns, rows), 76, glyph=1).places[0].width >= len(paths[0])
    assert rg.weights_title(run, weights, 60) == "0.attn.c_attn ─ weights ─ 768 channels"


def test_of_a_language_model_the_noise_of_the_weights_is_one_column() -> None:
    layer = {"name": "transformer.h.0.c_fc", "actual": "w4", "kernel": "int4pack", "sqnr_db": 26.0, "own_sqnr_db": 26.0, "params": 10}
    run = Run(layers={"ptq": (layer, {**layer, "name": "lm_head", "sqnr_db": 30.0, "own_sqnr_db": 30.0})})
    run = replace(run, measured={"baseline": {"metric": "perplexity"}})
    assert [column.title for column in layers.columns(run)].count("SQNR dB") == 1
    assert all(len(row.cells) == len(layers.columns(run)) for row in layers.rows(run, "harm"))
    assert layers.sentence(run, "transformer.h.0.c_fc").startswith("Rounding the weights of 0.c_fc adds noise of 5.0 %")


def test_a_language_model_is_judged_by_its_divergence() -> None:
    entry = {"value": 65.2, "error": {"mse": 1e-3, "divergence": 0.00251}}
    run = Run(measured={"baseline": {"metric": "perplexity", "value": 65.1}, "ptq": entry})
    assert "KL 0.0025" in result.facts(run) and not any("error" in fact for fact in result.facts(run))
