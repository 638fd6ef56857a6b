"""Decoders as ONNX graphs in ONNX Runtime: the twin's logits, read whole and over a cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import build as plain
from quantized_families import DYNAMIC, EIGHT, NAMES, decoder_of, family, lively, some_ids
from tiny_language import gpt2

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.export import parity
from engine.export.base import ExportContext
from engine.export.onnx import decoder_file
from engine.export.onnx.decoder_graph import build
from engine.export.onnx.decoder_matrices import blocked, note
from engine.export.registry import FORMATS
from engine.lowering.modules.loaded import rounding
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.lowering.modules.stepping import Step
from engine.numerics.packing import unpack
from engine.numerics.qparams import QParams
from engine.numerics.quantized_matrix import QuantizedMatrix
from engine.numerics.scheme import WeightScheme, int_scheme
from engine.numerics.weights import minmax, quantize
from engine.recipe.spec import ActivationSpec
from engine.tasks.generation import continuation

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from engine.export.onnx.decoder_run import OnnxDecoder

FLOAT, INTEGER = 1, 4
Write = Callable[..., OnnxDecoder]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    def write(decoder: QuantizedDecoder, accuracy: int = FLOAT) -> OnnxDecoder:
        path = tmp_path / "model.onnx"
        path.write_bytes(build(decoder, {"qtui": "tiny"}, accuracy).SerializeToString())
        return OnnxDecoder(path, 1)

    return write


def close(got: torch.Tensor, wanted: torch.Tensor, part: float = 1e-5) -> None:
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= part * wanted.abs().max()


def by_parts(model: OnnxDecoder, ids: torch.Tensor, *lengths: int) -> torch.Tensor:
    found, cache = [], None
    for part in ids.split(list(lengths), 1):
        logits, cache = model.step(part, cache)
        found.append(logits)
    return torch.cat(found, 1)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_every_family_computes_what_the_twin_computes(name: str, written: Write) -> None:
    decoder = family(name)
    wanted, model = decoder.twin(some_ids()).logits, written(decoder)
    close(model(some_ids()), wanted)
    close(by_parts(model, some_ids(), 4, 1, 1, 3), wanted)
    # Nothing of a token is seen by those before it.
    changed = some_ids().clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 96
    close(model(changed)[:, :6], wanted[:, :6])


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2 scaled by depth": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"}),
    "gpt2 without scale": ("gpt2", {"scale_attn_weights": False, "activation_function": "gelu"}),
    "mistral with windows": ("mistral", {"sliding_window": 3, "head_dim": 4}),
    "qwen2 with windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2}),
    "llama 3": ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                                              "high_freq_factor": 4.0, "original_max_position_embeddings": 16}}),
    "llama yarn": ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                                                 "original_max_position_embeddings": 8}}),
    "opt with norms behind": ("opt", {"do_layer_norm_before": False}),
    "opt without projections": ("opt", {"word_embed_proj_dim": 16, "enable_bias": False}),
    "pythia in a row": ("pythia", {"use_parallel_residual": False}),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(OTHERS))
def test_options_of_families(name: str, written: Write) -> None:
    import transformers
    from families import FAMILIES

    kind, changes = OTHERS[name]
    config = getattr(transformers, FAMILIES[kind][0])(
        **{**FAMILIES[kind][1], "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, **changes}
    )
    decoder = decoder_of(lively(transformers.AutoModelForCausalLM.from_config(config)))
    wanted, model = decoder.twin(some_ids()).logits, written(decoder)
    close(model(some_ids()), wanted)
    close(by_parts(model, some_ids(), 5, 1, 3), wanted)


@torch.no_grad()
@pytest.mark.parametrize(
    "inside",
    [
        None,
        int_scheme(2, 16),
        int_scheme(3, 32, True),
        int_scheme(4, 0, True),
        int_scheme(4, 48),
        int_scheme(6, 16),
        int_scheme(8, 64, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("outside", [None, int_scheme(4, 16), int_scheme(8, 0, True), int_scheme(8, 32)], ids=str)
def test_every_grid_with_a_tied_head(inside: WeightScheme | None, outside: WeightScheme | None, written: Write) -> None:
    decoder = decoder_of(lively(gpt2(rows=97, n_embd=40)), inside or int_scheme(), outside)
    if inside is None:
        decoder = QuantizedDecoder(decoder.twin, {p: m for p, m in decoder.matrices.items() if ".h." not in p})
    close(written(decoder)(some_ids()), decoder.twin(some_ids()).logits)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_integer_arithmetic_is_near_and_the_file_is_small(name: str, written: Write, tmp_path: Path) -> None:
    decoder = family(name, int_scheme(4, 16), int_scheme(4, 16), DYNAMIC)
    wanted = decoder.twin(some_ids()).logits
    model = written(decoder, INTEGER)
    noise = (model(some_ids()) - wanted).square().sum() / wanted.square().sum()
    assert 0 < noise < 1e-3, "activations of 8 bits: 30 dB and more"
    close(by_parts(model, some_ids(), 8, 1), model(some_ids()), 0.1)


@torch.no_grad()
@pytest.mark.parametrize("spec", [int_scheme(4, 16), EIGHT], ids=str)
def test_activations_that_the_recipe_leaves_stay_in_floating_point(spec: WeightScheme, written: Write) -> None:
    decoder = family("llama", spec, EIGHT)
    close(written(decoder, INTEGER)(some_ids()), decoder.twin(some_ids()).logits)


def test_integers_are_stored_as_the_kernel_reads_them() -> None:
    weight = torch.randn(6, 80, generator=torch.Generator().manual_seed(1))
    for spec in (int_scheme(3, 16), int_scheme(4, 48, True), int_scheme(8, 0), int_scheme(5, 32, True)):
        made = quantize(weight, minmax(weight, spec))
        form = blocked(made, "layer")
        codes = unpack(form.packed.reshape(-1, form.packed.shape[2]), form.block, form.bits).reshape(6, -1, form.block).float()
        zero = torch.full_like(form.scale, form.middle).float() if form.zero is None else form.zero.float()
        rebuilt = ((codes - zero[..., None]) * form.scale.float()[..., None]).reshape(6, -1)[:, :80]
        assert torch.equal(rebuilt, made.dequantize()), spec
    assert blocked(quantize(weight, minmax(weight, int_scheme(4, 48))), "layer").block == 16
    with pytest.raises(EngineError, match=r"layer has groups of 24"):
        blocked(quantize(weight, minmax(weight, int_scheme(4, 24))), "layer")
    three = quantize(weight, minmax(weight, int_scheme(3, 16)))
    assert note({"a": three, "b": three, "c": quantize(weight, minmax(weight, int_scheme()))}) == "2 matrices of 3 bits are stored in 4"


@torch.no_grad()
def test_static_activations_are_rounded_in_the_graph(written: Write) -> None:
    decoder = family("llama")
    grids = {path: QParams(0.05, 60, 127) for path in decoder.matrices if "proj" in path}
    matrices = {p: QuantizedMatrix(m.weight, ActivationSpec(7), grids[p]) if p in grids else m for p, m in decoder.matrices.items()}
    rounded = QuantizedDecoder(decoder.twin, matrices)
    with rounding(rounded) as twin:
        wanted = twin(some_ids()).logits
    assert (wanted - decoder.twin(some_ids()).logits).abs().max() > 0.01
    # A value between two steps may go either way.
    got = written(rounded)(some_ids())
    assert ((got - wanted).abs() < 1e-4).float().mean() > 0.9


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "pythia"])
def test_activations_are_rounded_token_by_token_where_the_recipe_says(name: str, written: Write) -> None:
    decoder = family(name, EIGHT, activations=DYNAMIC)
    with rounding(decoder) as twin:
        wanted = twin(some_ids()).logits
    model = written(decoder)
    got = model(some_ids())
    assert (wanted - decoder.twin(some_ids()).logits).abs().max() > 1e-3
    # A value between two steps may go either way, and what follows with it.
    assert ((got - wanted).abs() < 1e-4).float().mean() > 0.8 and (got - wanted).abs().max() < 0.05 * wanted.abs().max()
    # With 4 bits the kernel rounds by itself.
    four = family(name, activations=DYNAMIC)
    close(written(four)(some_ids()), four.twin(some_ids()).logits)


def as_model(step: Step) -> Any:
    """A step as ``continuation`` takes models."""

    def model(input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = True) -> Any:
        logits, cache = step(input_ids, past_key_values)
        return SimpleNamespace(logits=logits, past_key_values=cache)

    return model


def test_a_text_is_continued_as_the_twin_continues_it(written: Write) -> None:
    decoder = family("qwen3")
    beginning, stop = some_ids(1, 6)[0], StopToken()
    found = list(continuation(as_model(written(decoder).step), beginning, 20, stop=stop))
    assert found == list(continuation(decoder.twin, beginning, 20, stop=stop)) and len(set(found)) > 1


def test_what_has_no_graph_is_told_in_a_line(tmp_path: Path) -> None:
    import transformers

    config = transformers.GPTNeoConfig(hidden_size=16, num_layers=1, num_heads=2, vocab_size=96, attention_types=[[["global"], 1]])
    other = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(EngineError, match=r"decoder of type gpt_neo is not among them"):
        build(QuantizedDecoder(other, {}), {})
    model = plain("llama")
    model.model.rotary_emb.rope_type = "dynamic"
    with pytest.raises(EngineError, match=r"'dynamic' change with the length"):
        build(QuantizedDecoder(model, {}), {})
    model = plain("gpt2")
    model.config.activation_function = "mish"
    with pytest.raises(EngineError, match=r"'mish' is not written"):
        build(QuantizedDecoder(model, {}), {})


def test_files_that_are_no_decoders_are_told_in_a_line(tmp_path: Path, written: Write) -> None:
    import onnx

    model = written(family("gpt2"))
    with pytest.raises(EngineError, match=r"does not run on 40 more tokens"):
        model(some_ids(1, 40))
    whole = model.path.read_bytes()
    helper = onnx.helper
    ends = [[helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])] for name in ("images", "logits")]
    images = helper.make_graph([helper.make_node("Relu", ["images"], ["logits"])], "g", *ends)
    opsets = [helper.make_opsetid("", 21)]
    bad = {b"": "loaded", whole[: len(whole) // 2]: "loaded", b"rubbish": "loaded"}
    bad[helper.make_model(images, opset_imports=opsets, ir_version=10).SerializeToString()] = "no export of a language model"
    for content, words in bad.items():
        path = tmp_path / "bad.onnx"
        path.write_bytes(content)
        with pytest.raises(EngineError, match=words) as caught:
            OnnxDecoder(path, 1)
        assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match="does not exist"):
        OnnxDecoder(tmp_path / "none.onnx", 1)


def test_what_a_terminal_sends_does_not_reach_the_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trial = f"import os, sys; sys.exit(7 if os.getpgrp() == {os.getpgrp()} else 0)"
    monkeypatch.setattr(decoder_file, "TRIAL", trial)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(EngineError, match="cannot be loaded by ONNX Runtime"):
        parity.load(FORMATS["onnx"], tmp_path / "model.onnx", ExportContext(None, lowering="modules"))
