"""Exports of decoders: what is entered of them, and that a failure leaves what was there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized_families import DYNAMIC, EIGHT, family, some_ids
from tiny_language import tokenizer

from engine.errors import Cancelled, EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.export import decoder_exports as exports
from engine.export.decoder_exports import Given, make
from engine.export.decoder_formats import FORMATS, find
from engine.export.decoder_parity import compare
from engine.export.onnx import decoder_file as onnx_file
from engine.export.registry import Format
from engine.lowering.modules.stepping import of_model
from engine.numerics.scheme import int_scheme
from engine.report.mismatch import DIFFERS
from engine.tasks.decode_timing import Lengths

STOP = StopToken()


def given(name: str = "llama", **kwargs: Any) -> Given:
    decoder = family(name, int_scheme(4, 0, True) if name != "gpt2" else int_scheme(4, 16), **kwargs)
    return Given(decoder, [*some_ids(2, 20), some_ids(1, 7)[0]], lengths=Lengths(12, 4, 3), rounds=1)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


NEEDED = {"onnx": ("onnx", "onnxruntime"), "compressed-tensors": ("compressed_tensors",), "safetensors": ()}


@pytest.mark.parametrize("name", sorted(FORMATS))
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
    ran = exports._RUNNERS["safetensors"]
    monkeypatch.setitem(exports._RUNNERS, "safetensors", lambda path: replace(it := ran(path), step=_upside_down(it.step)))
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
        it = replace(given("gpt2"), windows=[some_ids(1, length)[0]], lengths=Lengths(128, 16, 32))
        found = make("safetensors", it, tmp_path, STOP)
        assert found["verified"] and (found["latency"]["prompt"], found["latency"]["new"]) == (32, 16)


@pytest.mark.parametrize("name", ["safetensors", "compressed-tensors"])
def test_a_prompt_is_timed_without_logits_that_nobody_reads(name: str, tmp_path: Path) -> None:
    for package in NEEDED[name]:
        pytest.importorskip(package)
    exports.placed(find(name), tmp_path, lambda path: exports._WRITERS[name](given(), path))
    ran = exports._RUNNERS[name](tmp_path / find(name).files[0])
    seen: list[int] = []

    def note(module: torch.nn.Module, args: object, out: object) -> None:
        if isinstance(out, torch.Tensor) and out.shape[-1] == 96:
            seen.append(out.shape[1])

    hook = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        with torch.inference_mode():
            quick, whole = ran.timed(some_ids(1, 9), None)[0], ran.step(some_ids(1, 9), None)[0]
    finally:
        hook.remove()
    assert seen == [1, 9]
    torch.testing.assert_close(quick, whole[0, -1], rtol=1e-4, atol=1e-5)


def test_rounded_activations_are_what_a_file_is_compared_with(tmp_path: Path) -> None:
    decoder = family("llama", EIGHT, activations=DYNAMIC)
    found = make("safetensors", Given(decoder, [some_ids(1, 20)[0]], lengths=Lengths(4, 2, 1), rounds=1), tmp_path, STOP)
    assert found["parity"]["max_abs"] == 0
    # A cache changes the order of sums, and with it which way a value in the middle goes.
    assert found["parity_cached"]["sqnr_db"] > 30


def test_a_runtime_that_is_missing_leaves_a_file_that_is_not_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], runs=("no_such_runtime",)))
    found = make("onnx", given("gpt2"), tmp_path, STOP)
    assert (tmp_path / "model.onnx").is_file() and found["size_bytes"] > 0 and not found["verified"]
    assert found["install"] == "uv pip install no-such-runtime"
    assert found["reason"] == "not verified, no_such_runtime is not installed: uv pip install no-such-runtime, then export again"
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], writes=("no_such_writer",)))
    found = make("onnx", given("gpt2"), tmp_path / "other", STOP)
    assert found["path"] == "" and "onnx needs no_such_writer: uv pip install no-such-writer" in found["reason"]


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(given: Given, path: Path) -> str:
        path.write_bytes(b"half")
        raise error

    return fail


@pytest.mark.parametrize("error", [EngineError("groups of 5"), ValueError("odd\nvalue"), OSError(28, "No space left on device")])
def test_what_cannot_be_written_leaves_what_was_there(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make("safetensors", given("gpt2"), tmp_path, STOP)["verified"]
    before = (tmp_path / "model.safetensors").read_bytes()
    monkeypatch.setattr(exports, "_WRITERS", {"safetensors": raising(error)})
    found = make("safetensors", given("gpt2"), tmp_path, STOP)
    assert not found["verified"] and found["path"] == "" and "\n" not in found["reason"]
    assert (tmp_path / "model.safetensors").read_bytes() == before and hidden(tmp_path) == []
    found = make("safetensors", given("gpt2"), tmp_path / "nowhere", STOP)
    assert "nowhere" in found["reason"] and "cannot be written" in found["reason"]


def test_gpt2_is_told_why_servers_cannot_read_it(tmp_path: Path) -> None:
    found = make("compressed-tensors", given("gpt2"), tmp_path, STOP)
    assert "Conv1D" in found["reason"] and not found["verified"] and list(tmp_path.iterdir()) == []


def test_stopped_it_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "_WRITERS", {"safetensors": raising(Cancelled())})
    with pytest.raises(Cancelled):
        make("safetensors", given("gpt2"), tmp_path, STOP)
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_and_empty_texts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'onxx' is not known for language models: did you mean onnx\?"):
        find("onxx")
    assert "two tokens" in make("safetensors", replace(given("gpt2"), windows=[some_ids()[0, :1]]), tmp_path, STOP)["reason"]


def test_parity_tells_two_models_apart() -> None:
    one, other = family("gpt2").twin, family("gpt2", int_scheme(2, 16)).twin
    windows = list(some_ids(3, 30))
    whole, cached = compare(of_model(other), lambda ids: one(ids).logits, windows, STOP)
    with torch.no_grad():
        got, wanted = (model(torch.stack(windows)).logits.double() for model in (other, one))
    difference = got - wanted
    ids = torch.stack(windows)[:, 1:].flatten()
    losses = [torch.nn.functional.cross_entropy(x[:, :-1].flatten(0, 1), ids).item() for x in (got, wanted)]
    for found in (whole, cached):
        assert found.max_abs == pytest.approx(difference.abs().max().item(), rel=1e-3)
        assert found.sqnr_db == pytest.approx(10 * math.log10((wanted.square().sum() / difference.square().sum()).item()), abs=0.01)
        assert found.agreement == pytest.approx((got.argmax(-1) == wanted.argmax(-1)).double().mean().item())
        assert found.perplexity == pytest.approx(math.exp(losses[0]), rel=1e-5)
        assert found.perplexity_rise == pytest.approx(math.exp(losses[0]) - math.exp(losses[1]), rel=1e-2)


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
    found = make("compressed-tensors", replace(given(), source=source), tmp_path, STOP)
    assert found["verified"] and (tmp_path / "compressed-tensors" / "tokenizer.json").is_file()
    assert "outside of the blocks" in found["note"]


def test_what_onnx_does_otherwise_is_told(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    said = make("onnx", given("gpt2"), tmp_path, STOP)["note"]
    assert said == "ONNX Runtime rounds what enters 9 matrices to 8 bits in blocks, whatever the recipe says of it"
    three = replace(given("gpt2"), decoder=family("gpt2", int_scheme(3, 16), None, DYNAMIC))
    assert make("onnx", three, tmp_path, STOP)["note"].startswith("8 matrices of 3 bits are stored in 4; ")
    dynamic = replace(given("gpt2"), decoder=family("gpt2", EIGHT, None, DYNAMIC))
    assert make("onnx", dynamic, tmp_path, STOP)["note"] == ""


def test_the_registry_is_formats_of_the_export_room() -> None:
    assert all(isinstance(entry, Format) and entry.name == name for name, entry in FORMATS.items())
    assert set(FORMATS) == set(exports._WRITERS) == set(exports._RUNNERS)
