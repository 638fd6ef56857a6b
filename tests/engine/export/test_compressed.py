"""Folders of compressed-tensors: what the public library reads from them is what was quantized."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from quantized_families import DYNAMIC, EIGHT, FOUR, decoder_of, family, lively, some_ids
from safetensors.torch import load_file
from tiny_language import tokenizer

from engine.errors import EngineError
from engine.events.event import LayerRow
from engine.export.compressed_tensors import quantization_config, refuse, schemes_of, stored_matrix, words
from engine.export.compressed_tensors import write_folder as write
from engine.lowering.modules.layers import plan
from engine.lowering.modules.quantized import QuantizedDecoder, apply
from engine.models.anatomy import anatomy
from engine.numerics.formats import FORMATS
from engine.numerics.qparams import QParams
from engine.numerics.scheme import WeightScheme, int_scheme
from engine.recipe.spec import FP32, ActivationSpec, LayerSpec, Rule, WeightSpec

LINEAR = ["llama", "mistral", "opt", "pythia", "qwen2", "qwen3"]
FLOATS = [WeightScheme(FORMATS[name], FORMATS[name].block) for name in ("fp8_e4m3", "mxfp8", "mxfp4", "nvfp4")]
SPECS = [
    int_scheme(4, 8),
    int_scheme(4, 8, True),
    int_scheme(4, 0),
    int_scheme(3, 8),
    int_scheme(8, 0, True),
    int_scheme(8, 8),
    int_scheme(6, 0, True),
]


def library() -> Any:
    return pytest.importorskip("compressed_tensors", reason="uv sync --group bench")


def wide(name: str, spec: WeightScheme, activations: ActivationSpec | None = None, **changes: int) -> QuantizedDecoder:
    """More than 8 outputs in each matrix: compressed-tensors 0.20 cannot unpack zero points of fewer."""
    import transformers

    kind, options, *_ = FAMILIES[name]
    if "num_key_value_heads" in options:
        options = {**options, "num_key_value_heads": 2}
    options = {**options, **changes}
    config = getattr(transformers, kind)(**options, bos_token_id=0, eos_token_id=1, pad_token_id=0)
    return decoder_of(lively(transformers.AutoModelForCausalLM.from_config(config)), spec, activations=activations)


def test_the_config_targets_the_class_where_layers_are_alike(tmp_path: Path) -> None:
    decoder = wide("llama", int_scheme(4, 8))
    config = quantization_config(decoder.twin, schemes_of(decoder))
    group = config["config_groups"]["group_0"]
    assert (config["format"], group["targets"], config["ignore"]) == ("pack-quantized", ["Linear"], ["lm_head"])
    assert config["dequantize"] is True
    assert (group["weights"]["num_bits"], group["weights"]["group_size"], group["weights"]["strategy"]) == (4, 8, "group")
    matrices = dict(decoder.matrices)
    path = "model.layers.1.mlp.up_proj"
    matrices[path] = wide("llama", EIGHT, activations=DYNAMIC).matrices[path]
    mixed = QuantizedDecoder(decoder.twin, matrices)
    config = quantization_config(mixed.twin, schemes_of(mixed))
    assert config["format"] == "mixed-precision" and config["config_groups"]["group_1"]["targets"] == [path]
    assert "dequantize" not in config, "transformers would unpack all layers by the first form"
    alike = family("llama", int_scheme(4, 8, True))
    assert "dequantize" not in quantization_config(alike.twin, schemes_of(alike))


def test_a_folder_has_what_servers_look_for(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "made"
    tokenizer().save_pretrained(source)
    folder.mkdir()
    said = write(wide("qwen2", int_scheme(3, 8)), source, folder)
    assert said == "14 matrices of fewer bits are stored in 4 or 8; 2 matrices outside of the blocks are stored in float16"
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in folder.iterdir()}
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"] and config["dtype"] == "float16" and "auto_map" not in config
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors, "it is the embedding's"
    assert tensors["model.layers.0.mlp.up_proj.weight_packed"].shape == (24, 2)


def test_words_hold_consecutive_values() -> None:
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 15]], dtype=torch.uint8)
    assert [f"{n & 0xFFFFFFFF:08x}" for n in words(codes, 4)[0].tolist()] == ["87654321", "0000000f"]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_library_unpacks_the_same_numbers(spec: WeightScheme) -> None:
    library()
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    decoder = family("llama", spec)
    path = "model.layers.0.mlp.down_proj"
    weight, scheme = decoder.matrices[path].weight, schemes_of(decoder)[path]
    compressor: Any = BaseCompressor.get_value_from_registry(scheme.format)
    got = compressor.decompress(stored_matrix(weight, scheme), QuantizationScheme(**scheme.entry([path])))["weight"]
    # The library multiplies in the scale's own float16.
    assert torch.allclose(got.float(), weight.dequantize(), rtol=2**-10, atol=0)


@pytest.mark.parametrize("spec", FLOATS, ids=str)
def test_the_library_unpacks_the_same_floats_of_few_bits(spec: WeightScheme) -> None:
    library()
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    decoder = wide("llama", spec, hidden_size=64, intermediate_size=96)
    path = "model.layers.0.mlp.down_proj"
    weight, scheme = decoder.matrices[path].weight, schemes_of(decoder)[path]
    compressor: Any = BaseCompressor.get_value_from_registry(scheme.format)
    got = compressor.decompress(stored_matrix(weight, scheme), QuantizationScheme(**scheme.entry([path])))["weight"]
    # The library multiplies in the scale's own type, bfloat16 of microscaling formats.
    assert torch.allclose(got.float(), weight.dequantize(), rtol=2**-8, atol=0)
    if spec.format.name == "mxfp4":
        assert torch.equal(got.float(), weight.dequantize())


@torch.no_grad()
@pytest.mark.parametrize("spec", FLOATS, ids=str)
def test_the_libraries_read_folders_in_floats_of_few_bits(spec: WeightScheme, tmp_path: Path) -> None:
    library()
    from engine.export.compressed_tensors_run import CompressedDecoder

    decoder = wide("llama", spec, hidden_size=64, intermediate_size=96)
    write(decoder, None, tmp_path)
    for parameter in decoder.twin.parameters():
        parameter.copy_(parameter.half())
    apply(decoder.twin, {path: decoder.matrices[path].weight for path in schemes_of(decoder)})
    ids = some_ids()
    wanted = decoder.twin(input_ids=ids, use_cache=False).logits.float()
    found = CompressedDecoder(tmp_path)(ids)
    # Its products of a block's and the tensor's scale are bfloat16, where there are two.
    assert (found - wanted).norm() < (1e-2 if spec.format.two_level else 2e-3) * wanted.norm()


@torch.no_grad()
@pytest.mark.parametrize("spec", [int_scheme(4, 8, True), int_scheme(4, 8), int_scheme(8, 0, True)], ids=str)
@pytest.mark.parametrize("name", LINEAR)
def test_the_libraries_read_the_folder(name: str, spec: WeightScheme, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library()
    from engine.export.compressed_tensors_run import CompressedDecoder

    decoder = wide(name, spec)
    write(decoder, None, tmp_path)
    # Embeddings, norms and biases lie in float16.
    for parameter in decoder.twin.parameters():
        parameter.copy_(parameter.half())
    apply(decoder.twin, {path: decoder.matrices[path].weight for path in schemes_of(decoder)})
    if not spec.symmetric:
        _in_half(decoder)
    wanted = decoder.twin(some_ids()).logits
    model = CompressedDecoder(tmp_path)
    assert capfd.readouterr().err == "" and model.note == ""
    got = model(some_ids())
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
    first, cache = model.step(some_ids()[:, :5], None)
    assert torch.allclose(torch.cat([first, model.step(some_ids()[:, 5:], cache)[0]], 1), got, atol=1e-4)


def _in_half(decoder: QuantizedDecoder) -> None:
    """Weights with zero points are multiplied in the scale's own float16 as transformers unpacks them."""
    for path in schemes_of(decoder):
        parameter = decoder.twin.get_submodule(path).weight
        parameter.copy_(parameter.half())


@torch.no_grad()
@pytest.mark.parametrize("spec", [int_scheme(4, 64), int_scheme(3, 64), int_scheme(4, 64, True)], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_transformers_alone_reads_the_folder(name: str, spec: WeightScheme, tmp_path: Path) -> None:
    library()
    import transformers

    decoder = wide(name, spec, hidden_size=64, intermediate_size=128)
    write(decoder, None, tmp_path)
    measured = decoder.twin(some_ids()).logits
    decoders: Any = transformers.AutoModelForCausalLM
    model, info = decoders.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    # Embeddings, norms and products with scales lie in float16.
    assert (model(some_ids()).logits - measured).square().mean() < 1e-5 * measured.square().mean()
    half = decoders.from_pretrained(tmp_path)
    assert half.dtype == torch.float16
    assert (half(some_ids()).logits - measured).square().mean() < 1e-4 * measured.square().mean()


@torch.no_grad()
@pytest.mark.parametrize("spec", [int_scheme(4, 8), int_scheme(4, 8, True)], ids=str)
def test_experts_and_their_gate_are_kept_and_said(spec: WeightScheme, tmp_path: Path) -> None:
    library()
    import transformers

    options = {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
    config = transformers.Qwen2MoeConfig(**{**FAMILIES["qwen2"][1], "num_key_value_heads": 2}, **options, pad_token_id=0)
    torch.manual_seed(0)
    decoder = decoder_of(lively(transformers.AutoModelForCausalLM.from_config(config)), spec)
    said = write(decoder, None, tmp_path)
    names = "mlp.gate.weight, mlp.experts.gate_up_proj, mlp.experts.down_proj"
    assert f"6 tensors that no method quantizes are stored in float16: {names}" in said
    one = "2 matrices of 8 outputs or fewer are stored in float16, for zero points: mlp.shared_expert_gate"
    assert (one in said) is not spec.symmetric
    wanted = decoder.twin(some_ids()).logits
    decoders: Any = transformers.AutoModelForCausalLM
    model, info = decoders.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    assert (model(some_ids()).logits - wanted).square().mean() < 1e-5 * wanted.square().mean()


def rows(spec: WeightSpec, model: Any) -> tuple[LayerRow, ...]:
    return plan(model, anatomy(model), "default", [Rule("kind:Linear", LayerSpec(spec))], {}, lambda *_: "").layers


def test_a_plan_is_refused_as_its_export_would_be() -> None:
    model = family("llama").twin
    refuse(rows(WeightSpec(4, "per-group", 8, symmetric=False), model))
    refuse(rows(WeightSpec(4, "per-group", 64, symmetric=False), model))
    with pytest.raises(EngineError, match=r"layers\.0\.mlp\.down_proj has 24 inputs in groups of 16: give a group size that divides"):
        refuse(rows(WeightSpec(4, "per-group", 16, symmetric=False), model))
    kept = plan(model, anatomy(model), "default", [Rule("*", FP32)], {}, lambda *_: "").layers
    with pytest.raises(EngineError, match="the format has no others"):
        refuse(kept)


@torch.no_grad()
def test_zero_points_beside_another_form_are_unpacked_by_the_library(tmp_path: Path) -> None:
    library()
    from engine.export.compressed_tensors_run import CompressedDecoder

    decoder, path = wide("llama", int_scheme(4, 8)), "model.layers.1.mlp.up_proj"
    matrices = {**decoder.matrices, path: wide("llama", EIGHT).matrices[path]}
    mixed = QuantizedDecoder(decoder.twin, matrices)
    apply(mixed.twin, {path: matrices[path].weight})
    write(mixed, None, tmp_path)
    model, wanted = CompressedDecoder(tmp_path), mixed.twin(some_ids()).logits
    assert model.note.startswith("transformers") and "alone does not load it" in model.note
    assert (model(some_ids()) - wanted).square().mean() < 1e-5 * wanted.square().mean()


@torch.no_grad()
def test_activations_are_rounded_by_the_library(tmp_path: Path) -> None:
    library()
    from engine.export.compressed_tensors_run import CompressedDecoder
    from engine.lowering.modules.loaded import rounding

    decoder = family("llama", EIGHT, activations=DYNAMIC)
    assert write(decoder, None, tmp_path) == "2 matrices outside of the blocks are stored in float16"
    assert load_file(tmp_path / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].dtype == torch.int8
    with rounding(decoder) as twin:
        wanted = twin(some_ids()).logits
    got = CompressedDecoder(tmp_path)(some_ids())
    noise, plain = (got - wanted).square().sum(), (got - decoder.twin(some_ids()).logits).square().sum()
    # The library's steps are 127.5 to the largest value where ours are 127.
    assert 0 < noise < 1e-3 * wanted.square().sum() and plain > 0


def test_what_the_format_has_not_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"Conv1D, which transformer\.h\.0\.attn\.c_attn is"):
        write(family("gpt2"), None, tmp_path)
    with pytest.raises(EngineError, match=r"24 inputs in groups of 16"):
        write(family("llama", FOUR), None, tmp_path)
    with pytest.raises(EngineError, match="the format has no others"):
        write(QuantizedDecoder(family("llama").twin, {}), None, tmp_path)
    decoder = family("llama", int_scheme(4, 8))
    with torch.no_grad():
        decoder.twin.model.norm.weight[0] = 1e6
    with pytest.raises(EngineError, match=r"model\.norm\.weight holds numbers beyond float16"):
        write(decoder, None, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("symmetric", [True, False])
def test_damaged_folders_are_told_in_a_line(symmetric: bool, tmp_path: Path) -> None:
    library()
    from engine.export.compressed_tensors_run import CompressedDecoder

    write(family("llama", int_scheme(4, 8, symmetric)), None, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    if symmetric:
        config["quantization_config"]["ignore"].append("model.layers.0.mlp.up_proj")
    else:
        config["num_hidden_layers"] += 1
    changes = (
        lambda: path.write_bytes(whole[:-5]), path.unlink, lambda: (tmp_path / "config.json").write_text(json.dumps(config)),
        lambda: (tmp_path / "config.json").write_text("{"),
    )  # fmt: skip
    for change in changes:
        path.write_bytes(whole)
        change()
        with pytest.raises(EngineError, match=r"export it again") as caught:
            CompressedDecoder(tmp_path)
        assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path))


FP8 = {
    "dynamic": (WeightScheme(FORMATS["fp8_e4m3"]), ActivationSpec.of({"format": "fp8_e4m3", "dynamic": True})),
    "static": (WeightScheme(FORMATS["fp8_e4m3"]), ActivationSpec.of({"format": "fp8_e4m3"})),
    "tensor": (WeightScheme(FORMATS["fp8_e4m3"], 0, 0), ActivationSpec.of({"format": "fp8_e4m3"})),
    "block": (WeightScheme(FORMATS["fp8_e4m3"], 128, 128), ActivationSpec.of({"format": "fp8_e4m3", "dynamic": True, "group_size": 128})),
    "mxfp8": (WeightScheme(FORMATS["mxfp8"], 32), ActivationSpec.of({"format": "mxfp8"})),
    "mxfp4": (WeightScheme(FORMATS["mxfp4"], 32), ActivationSpec.of({"format": "mxfp4"})),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", FP8)
def test_activations_in_floats_of_few_bits_are_rounded_by_the_library(kind: str, tmp_path: Path) -> None:
    library()
    from engine.export.compressed_tensors_run import CompressedDecoder
    from engine.lowering.modules.loaded import rounding

    spec, activations = FP8[kind]
    decoder = wide("llama", spec, activations, hidden_size=128, intermediate_size=256)
    if not activations.dynamic:
        step = QParams(2.0**-6, 0)
        matrices = {path: replace(m, grid=step) if m.activations else m for path, m in decoder.matrices.items()}
        decoder = QuantizedDecoder(decoder.twin, matrices)
    said = write(decoder, None, tmp_path)
    own = "; the format's readers choose the powers of two of activations by a rule of their own" if kind.startswith("mx") else ""
    assert said == f"2 matrices outside of the blocks are stored in float16{own}"
    group = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    assert group["input_activations"]["dynamic"] is activations.dynamic and group["input_activations"]["type"] == "float"
    for parameter in decoder.twin.parameters():
        parameter.copy_(parameter.half())
    apply(decoder.twin, {path: decoder.matrices[path].weight for path in schemes_of(decoder)})
    with rounding(decoder) as twin:
        wanted = twin(some_ids()).logits
    plain = decoder.twin(some_ids()).logits
    got = CompressedDecoder(tmp_path)(some_ids())
    if kind.startswith("mx"):
        # The library chooses powers of two by a rule of its own, which the note tells: as much noise, not the same.
        assert 0.5 * (plain - wanted).norm() < (got - plain).norm() < 2 * (plain - wanted).norm()
    else:
        # A value near a tie may go the other way; all of them are rounded.
        assert (got - wanted).norm() < 0.35 * (plain - wanted).norm()


def test_groups_that_do_not_divide_the_inputs_are_not_exported(tmp_path: Path) -> None:
    spec, activations = FP8["block"]
    decoder = wide("llama", spec, activations, hidden_size=64, intermediate_size=96)
    assert "the activations of 14 matrices are not rounded" in write(decoder, None, tmp_path)
    scale = load_file(tmp_path / "model.safetensors")["model.layers.0.mlp.up_proj.weight_scale"]
    assert scale.shape == (1, 1)


@torch.no_grad()
@pytest.mark.parametrize("text", ["fp8:per-tensor", "int8:per-tensor", "int8"])
def test_the_cache_goes_where_the_format_has_a_place_for_it(text: str, tmp_path: Path) -> None:
    library()
    from engine.events.cancellation import StopToken
    from engine.export.compressed_tensors_run import CompressedDecoder
    from engine.lowering.modules.coded_cache import attached, calibrated
    from engine.recipe.cache_spec import CacheSpec

    decoder = wide("llama", int_scheme(8, 0, True))
    form = calibrated(decoder.twin, CacheSpec.parse(text), list(some_ids()), 2, StopToken())
    said = write(replace(decoder, cache=form), None, tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    if text == "int8":
        assert about is None and "its readers have no cache of int8 per-token" in said
        return
    assert about["type"] == ("float" if "fp8" in text else "int") and "no cache" not in said
    held = load_file(tmp_path / "model.safetensors")
    assert torch.equal(held["model.layers.1.self_attn.k_scale"], form.steps[1][0].reshape(1))
    for parameter in decoder.twin.parameters():
        parameter.copy_(parameter.half())
    apply(decoder.twin, {path: decoder.matrices[path].weight for path in schemes_of(decoder)})
    plain = decoder.twin(some_ids()).logits
    with attached(decoder.twin, form):
        wanted = decoder.twin(some_ids()).logits
    got = CompressedDecoder(tmp_path)(some_ids())
    assert (got - wanted).norm() < 0.35 * (plain - wanted).norm()
