"""Exports of decoders: what is entered of them, and that a failure leaves what was there."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized_families import DYNAMIC, EIGHT, family, some_ids
from tiny_language import tokenizer

from engine.data.text.encoded import SequenceData
from engine.errors import Cancelled, EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.export import decoder_safetensors, making, registry
from engine.export.base import ExportContext, decoder_runner
from engine.export.making import Comparison, Known
from engine.export.onnx import decoder_file as onnx_file
from engine.export.onnx.precision import NOTE
from engine.export.parity import compare
from engine.export.registry import Format, find, formats_of
from engine.kernels.probe import probe
from engine.lowering.modules.lowering import ModulesLowering
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.lowering.modules.stepping import of_model
from engine.models.transformers_load import LanguageModel, context_of
from engine.numerics.scheme import int_scheme
from engine.report.mismatch import DIFFERS
from engine.tasks.base import forward_of
from engine.tasks.causal_lm import CausalLM
from engine.tasks.decode_timing import Lengths

STOP = StopToken()
FORMATS = formats_of("modules")


@dataclass(frozen=True)
class Given:
    """A quantized decoder with what its files are compared on."""

    context: ExportContext
    task: CausalLM


def task_on(decoder: QuantizedDecoder, windows: Sequence[torch.Tensor], lengths: Lengths) -> CausalLM:
    language = LanguageModel("tiny", decoder.twin, None, context_of(decoder.twin.config), "folder", Path())
    task = CausalLM(language, SequenceData("ids", {"train": (), "validation": (), "test": tuple(windows)}), 32, 32)
    task.lengths = lengths
    return task


def given_of(decoder: QuantizedDecoder, windows: Sequence[torch.Tensor], lengths: Lengths, source: Path | None = None) -> Given:
    context = ExportContext(decoder, lowering="modules", source=source, reference=ModulesLowering.measured(decoder))
    return Given(context, task_on(decoder, windows, lengths))


def given(name: str = "llama", **kwargs: Any) -> Given:
    decoder = family(name, int_scheme(4, 0, True) if name != "gpt2" else int_scheme(4, 16), **kwargs)
    return given_of(decoder, [*some_ids(2, 20), some_ids(1, 7)[0]], Lengths(12, 4, 3))


def finish(steps: Generator[Any, Any, Any]) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def make(name: str, it: Given, folder: Path, stop: StopToken) -> dict[str, Any]:
    """The entry of one format, written, read back, compared and timed."""
    entries: list[dict[str, Any]] = []
    test = Comparison(it.task, 1)
    runners = finish(making.exports((name,), it.context, folder, test, stop, entries, written=()))
    finish(making.timed(entries, runners, test, stop, Known({}, {})))
    return entries[0]


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# GGUF takes other grids than these, and has tests of its own.
NEEDED = {"onnx": ("onnx", "onnxruntime"), "compressed-tensors": ("compressed_tensors",), "safetensors": ()}


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_a_format_is_written_read_back_compared_and_timed(name: str, tmp_path: Path) -> None:
    for package in NEEDED[name]:
        pytest.importorskip(package)
    it = given()
    found = make(name, it, tmp_path, STOP)
    assert found["verified"] and not found["differs"] and "reason" not in found and found["path"] == FORMATS[name].files[0]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert found["size_bytes"] == sum(path.stat().st_size for path in files) > 1000
    least = {"safetensors": 1e3, "onnx": 25, "compressed-tensors": 50}[name]
    for key in ("parity", "parity_cached"):
        same = found[key]
        assert same["sqnr_db"] > (90 if name == "safetensors" else least) and same["agreement"] > 0.9
        assert abs(same["perplexity_rise"]) < 0.02 * same["perplexity"] and same["max_abs"] < 0.5
    assert found["latency"]["prefill"] > 0 and found["latency"]["decode"] > 0
    assert (found["latency"]["prompt"], found["latency"]["new"]) == (12, 3)
    assert hidden(tmp_path) == []
    # Written again it takes the place of the earlier one.
    assert make(name, it, tmp_path, STOP)["size_bytes"] == found["size_bytes"] and hidden(tmp_path) == []


def test_a_file_that_gives_other_logits_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = decoder_safetensors.load

    def other(path: Path, context: ExportContext) -> Any:
        found = load(path, context)
        assert found.step and found.last
        return decoder_runner(found.label, found.kernel, _upside_down(found.step), found.last)

    monkeypatch.setattr(decoder_safetensors, "load", other)
    found = make("safetensors", given("gpt2"), tmp_path, STOP)
    assert found["differs"] and not found["verified"] and found["latency"] == {} and found["path"]
    assert found["reason"].startswith(DIFFERS) and "\n" not in found["reason"]


def _upside_down(step: Any) -> Any:
    def run(ids: torch.Tensor, cache: Any) -> Any:
        logits, cache = step(ids, cache)
        return -logits, cache

    return run


def test_what_is_timed_fits_into_the_context(tmp_path: Path) -> None:
    # However short the text is that it is compared on: fp32 reads a prompt of that length too.
    for length in (32, 9):
        it = given_of(given("gpt2").context.model, [some_ids(1, length)[0]], Lengths(128, 16, 32))
        found = make("safetensors", it, tmp_path, STOP)
        assert found["verified"] and (found["latency"]["prompt"], found["latency"]["new"]) == (32, 16)


@pytest.mark.parametrize("name", ["safetensors", "compressed-tensors"])
def test_a_prompt_is_timed_without_logits_that_nobody_reads(name: str, tmp_path: Path) -> None:
    for package in NEEDED[name]:
        pytest.importorskip(package)
    context = given().context
    making.write(find(name), context, tmp_path)
    ran = find(name).module("modules").load(tmp_path / find(name).files[0], context)
    seen: list[int] = []

    def note(module: torch.nn.Module, args: object, out: object) -> None:
        if isinstance(out, torch.Tensor) and out.shape[-1] == 96:
            seen.append(out.shape[1])

    hook = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        with torch.inference_mode():
            quick, whole = ran.last(some_ids(1, 9), None)[0], ran.step(some_ids(1, 9), None)[0]
    finally:
        hook.remove()
    assert seen == [1, 9]
    torch.testing.assert_close(quick, whole[0, -1], rtol=1e-4, atol=1e-5)


def test_rounded_activations_are_what_a_file_is_compared_with(tmp_path: Path) -> None:
    decoder = family("llama", EIGHT, activations=DYNAMIC)
    found = make("safetensors", given_of(decoder, [some_ids(1, 20)[0]], Lengths(4, 2, 1)), tmp_path, STOP)
    assert found["parity"]["max_abs"] == 0
    # A cache changes the order of sums, and with it which way a value in the middle goes.
    assert found["parity_cached"]["sqnr_db"] > 30


def test_a_runtime_that_is_missing_leaves_a_file_that_is_not_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setitem(registry.FORMATS, "onnx", replace(FORMATS["onnx"], runs=("no_such_runtime",)))
    found = make("onnx", given("gpt2"), tmp_path, STOP)
    assert (tmp_path / "model.onnx").is_file() and found["size_bytes"] > 0 and not found["verified"]
    assert found["install"] == "uv pip install no-such-runtime"
    assert found["reason"] == "not verified, no_such_runtime is not installed: uv pip install no-such-runtime, then export again"
    monkeypatch.setitem(registry.FORMATS, "onnx", replace(FORMATS["onnx"], writes=("no_such_writer",)))
    found = make("onnx", given("gpt2"), tmp_path / "other", STOP)
    assert found["path"] == "" and "onnx needs no_such_writer: uv pip install no-such-writer" in found["reason"]


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(context: ExportContext, path: Path) -> str:
        path.write_bytes(b"half")
        raise error

    return fail


@pytest.mark.parametrize("error", [EngineError("groups of 5"), ValueError("odd\nvalue"), OSError(28, "No space left on device")])
def test_what_cannot_be_written_leaves_what_was_there(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make("safetensors", given("gpt2"), tmp_path, STOP)["verified"]
    before = (tmp_path / "model.safetensors").read_bytes()
    monkeypatch.setattr(decoder_safetensors, "write", raising(error))
    found = make("safetensors", given("gpt2"), tmp_path, STOP)
    assert not found["verified"] and found["path"] == "" and "\n" not in found["reason"]
    assert (tmp_path / "model.safetensors").read_bytes() == before and hidden(tmp_path) == []
    found = make("safetensors", given("gpt2"), tmp_path / "nowhere", STOP)
    assert "nowhere" in found["reason"] and "cannot be written" in found["reason"]


def test_gpt2_is_told_why_servers_cannot_read_it(tmp_path: Path) -> None:
    found = make("compressed-tensors", given("gpt2"), tmp_path, STOP)
    assert "Conv1D" in found["reason"] and not found["verified"] and list(tmp_path.iterdir()) == []


def test_stopped_it_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_safetensors, "write", raising(Cancelled()))
    with pytest.raises(Cancelled):
        make("safetensors", given("gpt2"), tmp_path, STOP)
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_and_empty_texts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'onxx' is not known for language models: did you mean onnx\?"):
        find("onxx", "modules")
    nothing = given_of(given("gpt2").context.model, [some_ids()[0, :1]], Lengths(12, 4, 3))
    assert "two tokens" in make("safetensors", nothing, tmp_path, STOP)["reason"]


def test_parity_tells_two_models_apart() -> None:
    decoder, other = family("gpt2"), family("gpt2", int_scheme(2, 16)).twin
    one, windows = decoder.twin, list(some_ids(3, 30))
    runner = decoder_runner("", "", of_model(other), of_model(other))
    whole, cached = finish(compare(runner, forward_of(one), task_on(decoder, windows, Lengths()), 1, None, STOP))
    with torch.no_grad():
        got, wanted = (model(torch.stack(windows)).logits.double() for model in (other, one))
    difference = got - wanted
    ids = torch.stack(windows)[:, 1:].flatten()
    losses = [torch.nn.functional.cross_entropy(x[:, :-1].flatten(0, 1), ids).item() for x in (got, wanted)]
    for found in (whole, cached):
        assert found.max_abs == pytest.approx(difference.abs().max().item(), rel=1e-3)
        assert found.sqnr_db == pytest.approx(10 * math.log10((wanted.square().sum() / difference.square().sum()).item()), abs=0.01)
        assert found.agreement == pytest.approx((got.argmax(-1) == wanted.argmax(-1)).double().mean().item())
        assert found.value == pytest.approx(math.exp(losses[0]), rel=1e-5)
        assert found.rise == pytest.approx(math.exp(losses[0]) - math.exp(losses[1]), rel=1e-2)


def test_large_models_have_their_numbers_in_a_file_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    small = make("onnx", given("gpt2"), tmp_path, STOP)
    write = onnx_file.save
    monkeypatch.setattr(onnx_file, "save", lambda model, path: write(model, path, 1000))
    found = make("onnx", given("gpt2"), tmp_path, STOP)
    assert found["verified"] and (tmp_path / onnx_file.DATA).stat().st_size > 1000
    assert found["parity"] == small["parity"] and found["size_bytes"] > (tmp_path / "model.onnx").stat().st_size
    monkeypatch.undo()
    assert make("onnx", given("gpt2"), tmp_path, STOP)["size_bytes"] == small["size_bytes"]
    assert not (tmp_path / onnx_file.DATA).exists(), "nothing of the earlier file is left"


def test_a_tokenizer_goes_along(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    source = tmp_path / "source"
    tokenizer().save_pretrained(source)
    found = make("compressed-tensors", replace(it := given(), context=replace(it.context, source=source)), tmp_path, STOP)
    assert found["verified"] and (tmp_path / "compressed-tensors" / "tokenizer.json").is_file()
    assert "outside of the blocks" in found["note"]


def test_what_onnx_does_otherwise_is_told(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")

    def of(decoder: QuantizedDecoder) -> Given:
        return given_of(decoder, [some_ids(1, 20)[0]], Lengths(4, 2, 1))

    said = make("onnx", of(family("gpt2", int_scheme(4, 16), None, DYNAMIC)), tmp_path, STOP)["note"]
    assert said == "ONNX Runtime rounds what enters 8 matrices to 8 bits in blocks, whatever the recipe says of it"
    three = of(family("gpt2", int_scheme(3, 16), None, DYNAMIC))
    assert make("onnx", three, tmp_path, STOP)["note"].startswith("8 matrices of 3 bits are stored in 4; ")
    dynamic = of(family("gpt2", EIGHT, None, DYNAMIC))
    assert make("onnx", dynamic, tmp_path, STOP)["note"] == (NOTE if probe().saturates else "")


def test_the_registry_is_formats_of_the_export_room() -> None:
    assert all(isinstance(entry, Format) and entry.name == name for name, entry in FORMATS.items())
    for entry in registry.FORMATS.values():
        for lowering in entry.lowerings:
            assert callable(entry.module(lowering).write) and callable(entry.module(lowering).load)
