"""Keys and values in codes: the same answers in one pass and token by token, in every family; and what is told in a line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import driving
import pytest
import tiny_language
import torch
from families import build
from quantized_families import EIGHT, NAMES, decoder_of, lively, some_ids

import engine
from engine.errors import EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.kernels.probe import probe
from engine.lowering.modules.artifact import read, to_bytes
from engine.lowering.modules.coded_cache import QuantizedCache, attached, calibrated, size_of
from engine.lowering.modules.loaded import rounding
from engine.lowering.modules.runtime import running
from engine.recipe.cache_spec import CacheSpec
from engine.recipe.recipe import Recipe
from engine.tasks.generation import proceed

SPECS = ("int8", "fp8:per-tensor", "int8:per-channel", "int4")


def windows() -> list[torch.Tensor]:
    return list(some_ids(4, 20))


def form_of(model: Any, text: str) -> QuantizedCache:
    return calibrated(model, CacheSpec.parse(text), windows(), 2, StopToken())


@torch.no_grad()
@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("name", [*NAMES, "gemma3"])
def test_a_pass_and_writing_token_by_token_read_the_same_codes(name: str, text: str) -> None:
    model = lively(build(name))
    plain, ids = model(some_ids(), use_cache=False).logits, some_ids()
    with attached(model, form_of(model, text)):
        whole = model(input_ids=ids, use_cache=False).logits
        past, parts = None, []
        for at in range(ids.shape[1]):
            logits, past = proceed(model, ids[:, at : at + 1], past)
            parts.append(logits)
        assert all(layer.keys.dtype == torch.uint8 for layer in past.layers)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4 * float(whole.abs().max()))
    change = (whole - plain).norm() / plain.norm()
    assert 1e-6 < change < (0.2 if text == "int4" else 0.1)
    assert torch.equal(model(ids, use_cache=False).logits, plain), "floats again"


@torch.no_grad()
def test_windows_that_slide_forget_codes_as_they_forget_floats() -> None:
    model = lively(build("mistral", sliding_window=4))
    ids = some_ids(1, 16)
    with attached(model, form_of(model, "int8")):
        whole = model(input_ids=ids, use_cache=False).logits
        past, parts = None, []
        for at in range(16):
            logits, past = proceed(model, ids[:, at : at + 1], past)
            parts.append(logits)
        assert past.layers[0].keys.shape[-2] == 3
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)
    assert size_of(model, form_of(model, "int8")).sliding == 2


@torch.no_grad()
def test_transformers_generates_from_codes() -> None:
    model = lively(build("llama"))
    ids = some_ids(1, 5)
    with attached(model, form_of(model, "int4")):
        text = model.generate(ids, max_new_tokens=8, do_sample=False)
        for at in range(5, text.shape[1]):
            assert int(model(input_ids=text[:, :at]).logits[0, -1].argmax()) == int(text[0, at])


def test_bytes_of_a_token_are_counted() -> None:
    model = build("llama")
    found = size_of(model, form_of(model, "int8"))
    # Two layers of one head of 8 channels for keys and for values.
    assert (found.bytes_per_token, found.float16_bytes_per_token, found.layers) == (2 * 2 * (8 + 2), 2 * 2 * 8 * 2, 2)
    assert size_of(model, form_of(model, "fp8:per-tensor")).bytes_per_token == 2 * 2 * 8


@torch.no_grad()
@pytest.mark.parametrize("text", SPECS)
def test_the_file_holds_the_cache_and_the_kernels_read_it(text: str, tmp_path: Path) -> None:
    decoder = decoder_of(lively(build("qwen2")), EIGHT)
    decoder = replace(decoder, cache=form_of(decoder.twin, text))
    path = tmp_path / "model.safetensors"
    path.write_bytes(to_bytes(decoder, "model: tiny\n", ""))
    again = read(path)
    assert again.cache is not None and decoder.cache is not None and again.cache.spec == decoder.cache.spec
    with rounding(decoder) as one:
        wanted = one(some_ids()).logits
    with rounding(again) as two:
        assert torch.equal(two(some_ids()).logits, wanted)
    assert not torch.equal(decoder.twin(some_ids()).logits, wanted)
    ran, _ = running(again, probe())
    assert (ran(input_ids=some_ids(), use_cache=False).logits - wanted).norm() < 0.02 * wanted.norm()


def test_a_damaged_cache_is_told_in_a_line(tmp_path: Path) -> None:
    decoder = decoder_of(lively(build("llama")), EIGHT)
    form = form_of(decoder.twin, "fp8:per-tensor")
    broken = QuantizedCache(form.spec, {0: (torch.tensor(float("inf")), torch.tensor(1.0))})
    path = tmp_path / "model.safetensors"
    path.write_bytes(to_bytes(replace(decoder, cache=broken), "", ""))
    with pytest.raises(EngineError, match="damaged.*steps") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_models_without_keys_and_caches_of_floats_are_told_in_a_line() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=96, hidden_size=16, num_hidden_layers=1, state_size=4, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    with pytest.raises(EngineError, match="leave the cache"):
        form_of(MambaForCausalLM(config).eval(), "int8")
    model = lively(build("llama"))
    past = model(some_ids(), use_cache=True).past_key_values
    with attached(model, form_of(model, "int8")), pytest.raises(EngineError, match="holds floats already|holds floats"):
        model(some_ids(), past_key_values=past)


def test_a_run_quantizes_the_cache_and_counts_its_bytes(tmp_path: Path) -> None:
    tiny_language.write_folder(tmp_path / "tiny")
    (tmp_path / "text.txt").write_text(tiny_language.sentences(400))
    data = {"name": str(tmp_path / "text.txt"), "calibration": 8, "limit": 320, "stride": 16}
    asked = Recipe.make(model=str(tmp_path / "tiny"), data=data, qat={"mode": "never"}, cache="int4:per-group:16")
    outcome = driving.drive(asked, tmp_path / "run")
    assert outcome.error is None
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    held = report["cache"]
    assert held["spec"] == "int4 per-group 16" and held["bytes_per_token"] < held["float16_bytes_per_token"]
    assert Recipe.load(tmp_path / "run" / "recipe.yaml").cache == asked.cache
    back: Any = engine.load_quantized(tmp_path / "run")
    assert back.decoder.cache.spec == CacheSpec("int4", "per-group", 16)
    (export,) = report["exports"]
    assert export["parity"]["max_abs"] < 1e-5


def test_a_recipe_says_one_thing_of_the_cache() -> None:
    assert Recipe.make(model="m", cache={"bits": 4}).cache.spec() == CacheSpec("int4", "per-group", 32)  # type: ignore[union-attr]
    assert Recipe.make(model="m").fingerprint() == Recipe.make(model="m", cache=None).fingerprint()
    assert Recipe.make(model="m").fingerprint() != Recipe.make(model="m", cache="int8").fingerprint()
    for wrong in ({"bits": 4, "format": "int8"}, {"format": "int8", "group_size": 32}, "int5", {"format": "int16"}):
        with pytest.raises(UsageError) as caught:
            Recipe.make(model="m", cache=wrong)
        assert "\n" not in str(caught.value) and "cache" in str(caught.value)
