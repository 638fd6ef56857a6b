"""Folders of compressed-tensors: what the public library reads from them is what was quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from quantized_families import DYNAMIC, EIGHT, FOUR, decoder_of, family, lively, some_ids
from safetensors.torch import load_file
from tiny_language import tokenizer

from engine.decoders.compressed import quantization_config, schemes_of, stored_matrix, words, write
from engine.decoders.quantized import QuantizedDecoder, apply
from engine.errors import EngineError
from engine.quant.grouped import GroupSpec

LINEAR = ["llama", "mistral", "opt", "pythia", "qwen2", "qwen3"]
SPECS = [
    GroupSpec(4, 8),
    GroupSpec(4, 8, True),
    GroupSpec(4, 0),
    GroupSpec(3, 8),
    GroupSpec(8, 0, True),
    GroupSpec(8, 8),
    GroupSpec(6, 0, True),
]


def library() -> Any:
    return pytest.importorskip("compressed_tensors", reason="uv sync --group bench")


def wide(name: str, spec: GroupSpec) -> QuantizedDecoder:
    """More than 8 outputs in each matrix: compressed-tensors 0.20 cannot unpack zero points of fewer."""
    import transformers

    kind, options, *_ = FAMILIES[name]
    if "num_key_value_heads" in options:
        options = {**options, "num_key_value_heads": 2}
    config = getattr(transformers, kind)(**options, bos_token_id=0, eos_token_id=1, pad_token_id=0)
    return decoder_of(lively(transformers.AutoModelForCausalLM.from_config(config)), spec)


def test_the_config_targets_the_class_where_layers_are_alike(tmp_path: Path) -> None:
    decoder = family("llama", GroupSpec(4, 8))
    config = quantization_config(decoder, schemes_of(decoder))
    group = config["config_groups"]["group_0"]
    assert (config["format"], group["targets"], config["ignore"]) == ("pack-quantized", ["Linear"], ["lm_head"])
    assert (group["weights"]["num_bits"], group["weights"]["group_size"], group["weights"]["strategy"]) == (4, 8, "group")
    matrices = dict(decoder.matrices)
    path = "model.layers.1.mlp.up_proj"
    matrices[path] = family("llama", EIGHT, activations=DYNAMIC).matrices[path]
    mixed = QuantizedDecoder(decoder.twin, matrices)
    config = quantization_config(mixed, schemes_of(mixed))
    assert config["format"] == "mixed-precision" and config["config_groups"]["group_1"]["targets"] == [path]


def test_a_folder_has_what_servers_look_for(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "made"
    tokenizer().save_pretrained(source)
    folder.mkdir()
    said = write(family("qwen2", GroupSpec(3, 8)), source, folder)
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
def test_the_library_unpacks_the_same_numbers(spec: GroupSpec) -> None:
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


@torch.no_grad()
@pytest.mark.parametrize("spec", [GroupSpec(4, 8, True), GroupSpec(4, 8), GroupSpec(8, 0, True)], ids=str)
@pytest.mark.parametrize("name", LINEAR)
def test_the_libraries_read_the_folder(name: str, spec: GroupSpec, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library()
    from engine.decoders.compressed_run import CompressedDecoder

    decoder = wide(name, spec)
    write(decoder, None, tmp_path)
    # Embeddings, norms and biases lie in float16.
    for parameter in decoder.twin.parameters():
        parameter.copy_(parameter.half())
    apply(decoder.twin, {path: decoder.matrices[path].weight for path in schemes_of(decoder)})
    wanted = decoder.twin(some_ids()).logits
    model = CompressedDecoder(tmp_path)
    assert capfd.readouterr().err == ""
    assert not model.note or not spec.symmetric
    got = model(some_ids())
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
    first, cache = model.step(some_ids()[:, :5], None)
    assert torch.allclose(torch.cat([first, model.step(some_ids()[:, 5:], cache)[0]], 1), got, atol=1e-4)


@torch.no_grad()
def test_activations_are_rounded_by_the_library(tmp_path: Path) -> None:
    library()
    from engine.decoders.compressed_run import CompressedDecoder
    from engine.decoders.loaded import rounding

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
    with pytest.raises(EngineError, match="nothing for compressed-tensors"):
        write(QuantizedDecoder(family("llama").twin, {}), None, tmp_path)
    decoder = family("llama", GroupSpec(4, 8))
    with torch.no_grad():
        decoder.twin.model.norm.weight[0] = 1e6
    with pytest.raises(EngineError, match=r"model\.norm\.weight holds numbers beyond float16"):
        write(decoder, None, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("symmetric", [True, False])
def test_damaged_folders_are_told_in_a_line(symmetric: bool, tmp_path: Path) -> None:
    library()
    from engine.decoders.compressed_run import CompressedDecoder

    write(family("llama", GroupSpec(4, 8, symmetric)), None, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    config["quantization_config"]["ignore"].append("model.layers.0.mlp.up_proj")
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
