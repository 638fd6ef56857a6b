"""Whole runs of a small language model: what is asked, reported, kept and read back; and what ends in one line."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import driving
import pytest
import tiny_language
import torch

from engine import Recipe, load_quantized
from engine.errors import Cancelled, EngineError, UsageError
from engine.events.event import Graph, Layers, Notice, Planned, Ranges, Samples, Setting, Step, Weights
from engine.lowering.modules.progress import MatrixQuantized
from engine.lowering.modules.table import look
from engine.models.anatomy import anatomy
from engine.planning.legality import legalize
from engine.recipe.capabilities import CONVOLUTION
from engine.recipe.decisions import Strategy
from engine.recipe.presets import asked as preset_of
from engine.recipe.spec import FP32, LayerSpec, Rule, WeightSpec
from engine.tasks.decode_timing import Speed


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and a text beside it."""
    folder = tmp_path_factory.mktemp("language")
    tiny_language.write_folder(folder / "tiny")
    (folder / "text.txt").write_text(tiny_language.sentences(400))
    return folder


def recipe(place: Path, **changes: Any) -> Recipe:
    data = {"name": str(place / "text.txt"), "calibration": 8, "limit": 320, "stride": 16}
    return Recipe.make(**{"model": str(place / "tiny"), "data": data, "qat": {"mode": "never"}, **changes})


def test_a_run_reports_what_it_measured_and_its_file_gives_the_same(place: Path, tmp_path: Path) -> None:
    outcome = driving.drive(recipe(place), tmp_path / "run")
    assert outcome.error is None
    report = outcome.data
    assert report["baseline"]["metric"] == "perplexity" and report["baseline"]["perplexity"]["stride"] == 16
    assert report["verdict"]["met"] and report["verdict"]["chosen"] == "ptq" and "perplexity" in report["verdict"]["text"]
    assert abs(report["ptq"]["value"] / report["baseline"]["value"] - 1) < 0.005
    assert report["ptq"]["size_bytes"] == (tmp_path / "run" / "model.safetensors").stat().st_size
    assert {row["name"]: row["actual"] for row in report["layers"]}["transformer.h.0.ln_1"] == "fp32"
    assert all(report["ptq"]["tokens_per_second"][key] > 0 for key in ("prefill", "decode"))
    assert report["data"]["unit"] == "tokens" and report["data"]["calibration_tokens"] == 8 * tiny_language.CONTEXT
    (export,) = report["exports"]
    assert export["format"] == "safetensors" and export["parity"]["max_abs"] == 0
    text = (tmp_path / "run" / "report.md").read_text()
    assert "with its scales, transformer.wte as w8 per-channel and transformer.wpe as w8 per-channel included; fp16 is two bytes" in text
    assert "perplexity" in text and "sliding window, " in text.replace("Perplexity: ", "") and "The same words continued" in text
    back: Any = load_quantized(tmp_path / "run")
    ids = torch.arange(20)[None]
    before = tiny_language.gpt2()(input_ids=ids).logits
    assert float((back(ids) - before).norm() / before.norm()) < 0.05
    again = Recipe.load(tmp_path / "run" / "recipe.yaml")
    assert again.data.name == str(place / "text.txt") and again.data.stride == 16


def test_a_graph_that_is_not_written_is_refused_before_any_work(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from transformers import BloomConfig, BloomForCausalLM

    shape = {"vocab_size": tiny_language.ROWS, "hidden_size": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    tiny_language.write_folder(tmp_path / "bloom", BloomForCausalLM(BloomConfig(**shape)))
    asked = recipe(place, model=str(tmp_path / "bloom"), export=["onnx"], data={"name": str(place / "text.txt"), "context": 32})
    outcome = driving.drive(asked, tmp_path / "run")
    assert isinstance(outcome.error, UsageError) and not (tmp_path / "run").exists()
    assert not outcome.of(MatrixQuantized) and re.search(
        r"export to onnx: .*decoder of type bloom is not among them: leave it out", str(outcome.error)
    )


@pytest.fixture(scope="module")
def wide(place: Path) -> Path:
    """A decoder of ``Linear`` layers with rows of 80 numbers, which groups of 64 do not divide."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 80, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(**shape, vocab_size=tiny_language.ROWS, max_position_embeddings=32, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    return tiny_language.write_folder(place / "wide", LlamaForCausalLM(config))


UNEVEN = r"export to compressed-tensors: .*layers\.0\.self_attn\.q_proj has 80 inputs in groups of 64: give a group size that divides them"


def test_groups_that_do_not_divide_a_row_are_refused_before_any_work(place: Path, wide: Path, tmp_path: Path) -> None:
    asked = recipe(place, model=str(wide), preset="w4", export=["compressed-tensors"])
    outcome = driving.drive(asked, tmp_path / "run")
    assert isinstance(outcome.error, UsageError) and re.search(UNEVEN, str(outcome.error)) and not (tmp_path / "run").exists()


def test_a_person_is_told_of_such_groups_and_asked_again(place: Path, wide: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="uv sync --group bench")
    asked = recipe(place, model=str(wide), export=["compressed-tensors"])
    answers = {"quantize": [Strategy("w4", (), go=True), Strategy("w8", (), go=True)]}
    outcome = driving.drive(asked, tmp_path / "run", answers, attended=True)
    assert any(event.level == "warning" and re.search(UNEVEN, event.text) for event in outcome.of(Notice))
    assert outcome.error is None and outcome.data["exports"][1]["verified"]
    answers = {"quantize": [Strategy("w4", (), go=True), True]}
    outcome = driving.drive(asked, tmp_path / "other", answers, attended=True)
    assert isinstance(outcome.error, UsageError) and re.search(UNEVEN, str(outcome.error)) and not outcome.of(MatrixQuantized)


@pytest.mark.parametrize("key", ["context", "stride"])
def test_windows_are_not_asked_of_sequences(place: Path, tmp_path: Path, key: str) -> None:
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([[i, i + 1, i + 2] for i in range(8)]))
    outcome = driving.drive(recipe(place, data={"name": str(ids), key: 8}), tmp_path / "run")
    assert isinstance(outcome.error, UsageError) and f"data.{key} cuts a text in windows" in str(outcome.error)


def test_a_person_at_a_screen_sees_modules_ranges_weights_and_words(place: Path, tmp_path: Path) -> None:
    rules = (Rule("transformer.h.0.*", FP32),)
    answers = {"quantize": [Strategy("w4", rules, go=False), True], "qat": False}
    outcome = driving.drive(recipe(place, qat={"mode": "auto"}), tmp_path / "run", answers, attended=True)
    assert outcome.error is None
    kinds = {type(event) for event in outcome.events}
    assert {Graph, Planned, Ranges, Weights, Layers, Samples, Setting} <= kinds
    last = [event for event in outcome.events if isinstance(event, Planned)][-1]
    specs = {row.path: str(row.actual) for row in last.layers}
    assert specs["transformer.h.0.mlp.c_fc"] == "fp32"
    assert specs["transformer.h.1.mlp.c_fc"] == "w4 per-group 64 affine gptq+, fp32 activations"
    final = [event for event in outcome.events if isinstance(event, Ranges)][-1]
    assert final.final and all(row.channels in (16, 64) for row in final.rows)


def test_the_graph_of_torch_export_is_shown_on_request(place: Path, tmp_path: Path) -> None:
    outcome = driving.drive(recipe(place, graph="export"), tmp_path / "run")
    (graph,) = outcome.of(Graph)
    targets = [node.target for node in graph.nodes]
    # Two blocks with four matrices each, and the head.
    assert sum("addmm" in t or "linear" in t for t in targets) >= 9 and any("layer_norm" in t for t in targets)
    assert graph.nodes[0].opcode == "placeholder" and graph.nodes[-1].opcode == "output"


def test_windows_that_do_not_overlap_are_called_that(place: Path, tmp_path: Path) -> None:
    # The default stride is longer than this model's windows.
    data = {"name": str(place / "text.txt"), "calibration": 8, "limit": 320}
    outcome = driving.drive(recipe(place, data=data), tmp_path / "run")
    report = outcome.data
    for how in (report["baseline"]["perplexity"], report["ptq"]["perplexity"]):
        assert (how["protocol"], how["context"], how["stride"]) == ("non-overlapping windows", 32, 32)
    assert report["data"]["stride"] == 32
    text = (tmp_path / "run" / "report.md").read_text()
    assert "Perplexity: non-overlapping windows, context 32, stride 32, 310 tokens of the test split; " in text


def test_the_report_speaks_of_text(place: Path, tmp_path: Path) -> None:
    outcome = driving.drive(recipe(place), tmp_path / "run")
    text = (tmp_path / "run" / "report.md").read_text()
    assert not re.search(r"accuracy|images|nodes traced", text)
    (export,) = outcome.data["exports"]
    assert f" | {export['value']:.2f} (+0.00) |" in text and "perplexity on what is compared" in text
    assert "Calibration text: 8 windows of the training split, 256 tokens" in text
    assert "Speed: one sequence; a prompt of 32 tokens read at once, 16 tokens written one by one with a cache." in text
    (row,) = (line for line in text.splitlines() if line.startswith("| PTQ |"))
    assert f"| {outcome.data['ptq']['to_fp16']:.3f} |" in row and f"| {outcome.data['ptq']['error']['divergence']:.4f} |" in row
    assert f"{outcome.data['graph']['nodes']} modules, 2 blocks; the head shares the matrix of the embedding." in text


def test_few_bits_are_trained_and_kept_where_that_is_better(place: Path, tmp_path: Path) -> None:
    outcome = driving.drive(recipe(place, preset="w3", qat={"mode": "always", "epochs": 1}, threshold="drop:0.5"), tmp_path / "run")
    assert outcome.error is None
    report = outcome.data
    assert len(report["qat"]["loss"]) == 1 and report["qat"]["kept"] == (report["verdict"]["chosen"] == "qat")
    assert ("QAT is kept" in report["qat"]["why"]) == report["qat"]["kept"]
    better = report["qat"]["validation"]["value"] < report["ptq"]["validation"]["value"]
    assert better or not report["qat"]["kept"]
    rounded = [row for row in report["layers"] if row["actual"] != "fp32"]
    assert len(rounded) == 11 and all(row["sqnr_db"] > 3 for row in rounded) and sum("bytes" in row for row in rounded) == 10
    kept = Recipe.load(tmp_path / "run" / "recipe.yaml").qat
    assert (kept.batch, kept.lr, kept.distill) == (1024 // tiny_language.CONTEXT, 1e-3, 1.0)


def test_the_forms_of_a_trained_run_are_of_one_timing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine slows down between two timings: no figure of the report is set beside one of another hour."""
    hours = itertools.count(1)

    def timed(steps: Any, *_: Any, **__: Any) -> Any:
        yield from ()
        hour = next(hours)
        return {name: Speed((at + 1.0) / hour, (at + 2.0) / hour, 32, 16, 16, 1.0, 1.0) for at, name in enumerate(steps)}

    monkeypatch.setattr("engine.tasks.forms_timing.tokens_per_second", timed)
    report = driving.drive(recipe(place, preset="w3", qat={"mode": "always", "epochs": 1}), tmp_path / "run").data
    fp32 = report["baseline"]["latency_ms"]["p50"]
    for form in ("ptq", "qat"):
        assert report[form]["speedup"]["decode"] == pytest.approx(fp32 / report[form]["latency_ms"]["p50"], abs=0.006)


def test_modules_are_timed_by_the_median_of_five_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes meet a busy machine in one module, and one finds it idle; the one before them is not counted."""
    model, now = tiny_language.gpt2().eval(), [0.0]
    head, norm = iter([99.0, *[2.0] * 5]), iter([1.0, 9.0, 9.0, 0.0, 2.0, 2.0])
    for module, left in ((model.lm_head, head), (model.transformer.ln_f, norm)):
        plain = module.forward
        module.forward = lambda x, plain=plain, left=left: (now.__setitem__(0, now[0] + next(left)), plain(x))[1]
    monkeypatch.setattr("engine.lowering.modules.table.time", SimpleNamespace(perf_counter=lambda: now[0]))
    shares = look(model, anatomy(model), torch.zeros(1, 8, dtype=torch.long)).shares
    assert shares["lm_head"] == shares["transformer.ln_f"] == 0.5


def test_the_recipe_decides_how_fast_it_is_trained_and_in_what_batches(place: Path, tmp_path: Path) -> None:
    qat = {"mode": "always", "epochs": 1, "lr": 1e-6, "batch": 4}
    outcome = driving.drive(recipe(place, preset="w3", qat=qat), tmp_path / "run")
    steps = [event for event in outcome.events if isinstance(event, Step)]
    windows = outcome.data["data"]["train"] // tiny_language.CONTEXT
    assert steps[-1].total == -(-min(windows, 256) // 4) and max(step.lr for step in steps) <= 1e-6


def test_sequences_of_ids_need_no_tokenizer(place: Path, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(tiny_language.ROWS, (12 + i % 9,), generator=draw).tolist() for i in range(40)]
    (tmp_path / "ids.json").write_text(json.dumps(rows))
    tiny_language.write_folder(tmp_path / "bare", with_tokenizer=False)
    outcome = driving.drive(
        recipe(place, model=str(tmp_path / "bare"), data={"name": str(tmp_path / "ids.json"), "calibration": 8}), tmp_path / "run"
    )
    assert outcome.error is None
    assert any("every second one is for test, and of the others every eighth for validation" in e.text for e in outcome.of(Notice))
    assert outcome.data["baseline"]["perplexity"]["protocol"] == "sequences" and outcome.data["baseline"]["perplexity"]["stride"] is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": {"name": "digits"}}, "digits are images and .* reads text: give --data python-docs"),
        ({"weights": "a.safetensors"}, "brings its weights: leave --weights out"),
        ({"device": "cuda"}, "--device cuda: torch sees no GPU here"),
        ({"export": ("openvino",)}, "export format 'openvino' is not known for language models"),
        ({"preset": "tensorrt"}, "preset tensorrt is for networks on images"),
        ({"data": {"name": "TEXT", "context": 4096}}, "data.context is 4096: .* reads 2 to 32 tokens"),
        ({"data": {"name": "missing.txt"}}, "text missing.txt does not exist"),
        ({"data": {"name": "TEXT", "stride": 33}}, "data.stride is 33: a window has 32 tokens, and a longer step would leave text out"),
        ({"data": {"name": "TEXT", "context": 8, "stride": 16}}, "data.stride is 16: a window has 8 tokens"),
        ({"data": {"name": "TEXT", "limit": 31}}, "the limit is 31 tokens of the test split: give 32 or more"),
        ({"export": ("compressed-tensors",)}, "export to compressed-tensors: its readers pass over transformers' Conv1D"),
        ({"stem": "small"}, "stem is for networks on images, and .* reads text: leave it out"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(place: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    if changes.get("data", {}).get("name") == "TEXT":
        changes = {"data": {**changes["data"], "name": str(place / "text.txt")}}
    outcome = driving.drive(recipe(place, **changes), tmp_path / "run")
    assert isinstance(outcome.error, EngineError | UsageError) and "\n" not in str(outcome.error)
    assert re.search(says, str(outcome.error)), outcome.error
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_stopped_between_blocks_goes_on_with_the_next(place: Path, tmp_path: Path) -> None:
    def stop_it(event: Any, stop: Any) -> None:
        if isinstance(event, MatrixQuantized) and event.name == "transformer.h.1.attn.c_attn":
            stop.set()

    asked = recipe(place, preset="w4")
    whole = driving.drive(asked, tmp_path / "whole")
    stopped = driving.drive(asked, tmp_path / "run", on_event=stop_it)
    assert isinstance(stopped.error, Cancelled) and driving.state_of(tmp_path / "run") == "cancelled"
    assert [path.name for path in (tmp_path / "run" / "checkpoints" / "blocks").iterdir()] == ["block-0000.safetensors"]
    again = driving.resumed(tmp_path / "run")
    assert again.error is None and any(event.kept for event in again.of(MatrixQuantized))
    assert any("4 of 10 matrices were rounded before the run was stopped" in event.text for event in again.of(Notice))
    # What was done before counts: the first block's seconds are those of the run that was stopped.
    first, second = ({e.name: e.seconds for e in run.of(MatrixQuantized) if ".h.0." in e.name} for run in (stopped, again))
    assert first == second and again.data["ptq"]["seconds"] > sum(first.values()) > 0
    assert again.data["ptq"]["value"] == whole.data["ptq"]["value"]
    assert [row["sqnr_db"] for row in again.data["layers"]] == [row["sqnr_db"] for row in whole.data["layers"]]


def test_blocks_that_were_kept_for_another_recipe_are_told_of(place: Path, tmp_path: Path) -> None:
    def stop_it(event: Any, stop: Any) -> None:
        if isinstance(event, MatrixQuantized) and event.name == "transformer.h.1.attn.c_attn":
            stop.set()

    driving.drive(recipe(place, preset="w4"), tmp_path / "run", on_event=stop_it)
    written = tmp_path / "run" / "recipe.yaml"
    written.write_text(re.sub(r"preset: w4\b", "preset: w3", written.read_text()))
    again = driving.resumed(tmp_path / "run")
    assert again.error is None and not any(event.kept for event in again.of(MatrixQuantized))
    told = [event.text for event in again.of(Notice) if event.level == "warning"]
    assert "1 of 2 blocks were kept for another recipe, model or text: rounded again" in told


@pytest.mark.parametrize("preset", ["fp8", "mxfp4", "nvfp4"])
def test_floats_of_few_bits_are_stored_reported_and_read_back(place: Path, tmp_path: Path, preset: str) -> None:
    outcome = driving.drive(recipe(place, preset=preset, threshold="drop:0.2"), tmp_path / "run")
    assert outcome.error is None
    report = outcome.data
    name = {"fp8": "fp8_e4m3"}.get(preset, preset)
    rows = {row["name"]: row for row in report["layers"]}
    row = rows["transformer.h.0.attn.c_attn"]
    assert row["actual"].startswith(name) and row["kernel"] == f"torch fp32, {name} stored" and row["sqnr_db"] > 8
    assert "stored in few bits and computed in fp32 here" in report["verdict"]["text"]
    assert report["ptq"]["size_bytes"] == (tmp_path / "run" / "model.safetensors").stat().st_size
    (export,) = report["exports"]
    # The same weights; a matrix that lies the other way round in memory is summed in another order.
    assert export["parity"]["max_abs"] < 1e-5
    assert Recipe.load(tmp_path / "run" / "recipe.yaml").preset == preset


def test_a_format_by_rule_is_trained_and_converted_to_the_same_numbers(place: Path, tmp_path: Path) -> None:
    rules = [
        {"match": "*.c_fc", "weights": {"format": "nvfp4", "method": "gptq"}},
        {"match": "*.c_proj", "weights": {"format": "mxfp6_e2m3"}},
    ]
    asked = recipe(place, rules=rules, qat={"mode": "always", "epochs": 1}, threshold="drop:0.2")
    outcome = driving.drive(asked, tmp_path / "run")
    assert outcome.error is None
    rows = {row["name"]: row["actual"] for row in outcome.data["layers"]}
    assert rows["transformer.h.1.mlp.c_fc"] == "nvfp4 gptq, fp32 activations"
    assert rows["transformer.h.0.mlp.c_proj"] == "mxfp6_e2m3, fp32 activations"
    back: Any = load_quantized(tmp_path / "run")
    assert torch.isfinite(back(torch.arange(20)[None])).all()
    (export,) = outcome.data["exports"]
    assert export["parity"]["max_abs"] < 1e-5


def test_a_network_on_images_has_integers_where_a_format_is_asked() -> None:
    spec = LayerSpec(WeightSpec.of({"format": "nvfp4"}))
    found, why = legalize(spec, CONVOLUTION, 8)
    assert str(found.weights) == "w4 per-group 16" and why == "nvfp4 is for matrices of language models: integers of 4 bits"
    with pytest.raises(UsageError, match="preset nvfp4 is for language models"):
        preset_of("nvfp4", "convolution")
