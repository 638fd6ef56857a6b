"""GGUF files: what the public ``gguf`` package and transformers read from them is what was measured."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantized_families import lively
from small_decoders import DYNAMIC, INT8, on_integers
from tiny_language import tokenizer

from engine.errors import EngineError
from engine.export.gguf import kind_of, stored, write_file
from engine.export.gguf_architectures import ARCHITECTURES, architecture
from engine.export.gguf_tokenizer import vocabulary
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.models.anatomy import weight_of
from engine.numerics.formats import FORMATS
from engine.numerics.scheme import WeightScheme, int_scheme
from engine.numerics.weights import minmax, quantize

ROWS = 304
COMMON = {
    "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256,
    "vocab_size": ROWS, "max_position_embeddings": 64, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 0,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": ROWS, "bos_token_id": 0,
                            "eos_token_id": 1}),
    "llama": ("LlamaConfig", COMMON),
    "mistral": ("MistralConfig", {**COMMON, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {**COMMON, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**COMMON, "head_dim": 64}),
    "gemma": ("GemmaConfig", {**COMMON, "head_dim": 64, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", {**COMMON, "head_dim": 64, "query_pre_attn_scalar": 64, "tie_word_embeddings": True}),
    "gemma3_text": ("Gemma3TextConfig", {**COMMON, "head_dim": 64, "query_pre_attn_scalar": 64, "tie_word_embeddings": True}),
    "phi3": ("Phi3Config", {**COMMON, "original_max_position_embeddings": 64}),
    "gpt_neox": ("GPTNeoXConfig", COMMON),
}  # fmt: skip
# What transformers 5 builds a model of from the file alone.
READ = ["gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"]


def library() -> Any:
    return pytest.importorskip("gguf", reason="uv sync --group bench")


def model_of(kind: str, **changes: Any) -> Any:
    import transformers

    name, options = MODELS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**options, **changes})
    return lively(transformers.AutoModelForCausalLM.from_config(config)).eval()


def scheme(name: str) -> WeightScheme:
    return WeightScheme(FORMATS[name], FORMATS[name].block)


def decoder_of(kind: str, name: str = "q4_k", **changes: Any) -> QuantizedDecoder:
    return on_integers(model_of(kind, **changes), scheme(name), None, rows=scheme("q6_k"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    tokenizer().save_pretrained(folder)
    return folder


def written(decoder: QuantizedDecoder, source: Path, tmp_path: Path) -> Path:
    library()
    path = tmp_path / "model.gguf"
    write_file(decoder, source, path)
    return path


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_what_is_read_back_is_what_was_measured(kind: str, source: Path, tmp_path: Path) -> None:
    from engine.export.gguf_run import opened

    decoder = decoder_of(kind)
    path = written(decoder, source, tmp_path)
    model, label, _ = opened(path, decoder.twin.config)
    assert label.startswith("transformers" if kind in READ and find_spec("accelerate") else "gguf")
    for place, matrix in decoder.matrices.items():
        found = weight_of(model.get_submodule(place)).contiguous().numpy()
        assert (found.view(np.uint32) == matrix.weight.dequantize().numpy().view(np.uint32)).all(), place
    ids = torch.randint(0, ROWS, (2, 24), generator=torch.Generator().manual_seed(1))
    wanted = decoder.twin(input_ids=ids, use_cache=False).logits
    # Norms of Gemma lie there with one added.
    assert torch.allclose(model(input_ids=ids, use_cache=False).logits, wanted, atol=1e-4 if kind.startswith("gemma") else 0, rtol=0)


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in library().GGUFReader(path).fields.items()}


@pytest.mark.parametrize("kind", MODELS)
def test_metadata_are_those_of_llama_cpp(kind: str, source: Path, tmp_path: Path) -> None:
    decoder = decoder_of(kind, num_hidden_layers=1) if kind != "gpt2" else decoder_of(kind, n_layer=1)
    found, name = fields(written(decoder, source, tmp_path)), ARCHITECTURES[kind].name
    assert found["general.architecture"] == name and found["general.file_type"] == 15 and found["general.quantization_version"] == 2
    wanted = {"block_count": 1, "context_length": 64, "embedding_length": 256, "attention.head_count": 4}
    assert {key: found[f"{name}.{key}"] for key in wanted} == wanted
    eps = "attention.layer_norm_epsilon" if kind in ("gpt2", "gpt_neox") else "attention.layer_norm_rms_epsilon"
    assert 0 < found[f"{name}.{eps}"] < 1e-4
    if kind not in ("gpt2", "gpt_neox"):
        assert found[f"{name}.attention.head_count_kv"] == 2 and found[f"{name}.rope.freq_base"] >= 10000


def test_a_tokenizer_is_the_files(source: Path, tmp_path: Path) -> None:
    path = written(decoder_of("gpt2"), source, tmp_path)
    found, fast = fields(path), tokenizer()
    assert found["tokenizer.ggml.model"] == "gpt2" and found["tokenizer.ggml.pre"] == "gpt-2"
    tokens = found["tokenizer.ggml.tokens"]
    assert len(tokens) == ROWS and [tokens[number] for number in range(len(fast))] == fast.convert_ids_to_tokens(list(range(len(fast))))
    content = json.loads((source / "tokenizer.json").read_text())
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in content["model"]["merges"]]
    assert found["tokenizer.ggml.merges"] == merges
    assert found["tokenizer.ggml.eos_token_id"] == fast.eos_token_id
    assert found["tokenizer.ggml.token_type"][fast.eos_token_id] == 3


def test_a_vocabulary_of_text_has_scores_in_the_order_of_its_merges(tmp_path: Path) -> None:
    merges = [["a", "b"], ["ab", "c"]]
    vocab = {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "a": 3, "b": 4, "c": 5, "abc": 6, "ab": 7}
    content = {
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": True, "unk_token": "<unk>"}, "pre_tokenizer": None,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "_"}]},
        "added_tokens": [{"id": 1, "content": "<s>", "special": True}],
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    found = vocabulary(tmp_path, 9)
    assert (found.model, found.merges, found.space, found.tokens[8]) == ("llama", (), True, "[PAD8]")
    assert found.scores[7] > found.scores[6] > found.scores[3]
    assert found.kinds == (2, 3, 6, 1, 1, 1, 1, 1, 5)


def test_how_text_is_split_has_llama_cpps_name(tmp_path: Path) -> None:
    from engine.export.gguf_tokenizer import SPLITS

    plain = {"type": "ByteLevel", "use_regex": False}
    gemma = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
    cases: list[tuple[Any, bool, str, str]] = [
        ({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}, plain]}, False,
         "gpt2", name)
        for pattern, name in SPLITS.items()
    ] + [({"type": "ByteLevel"}, False, "gpt2", "gpt-2"), (gemma, True, "llama", "default"), (None, True, "llama", "default")]  # fmt: skip
    for step, fallback, model, name in cases:
        content = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "byte_fallback": fallback}, "pre_tokenizer": step}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        found = vocabulary(tmp_path, 2)
        assert (found.model, found.split) == (model, name)


def test_what_llama_cpp_computes_otherwise_is_refused() -> None:
    for kind, changes, says in (
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, "one block in 2"),
        ("gemma3_text", {"query_pre_attn_scalar": 256}, "root of 64"),
        ("llama", {"hidden_act": "gelu"}, "silu alone"),
        ("llama", {"mlp_bias": True}, "no biases"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8}, "windows of attention"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}, "'dynamic'"),
    ):  # fmt: skip
        config = model_of(kind, **changes).config
        with pytest.raises(EngineError, match=says) as error:
            architecture(config).settings(config)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("change", "says"), [
    ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "byte-pair"),
    ({"model": {"type": "BPE", "vocab": {"a": 200}, "merges": []}}, "tokens up to 200"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "no name for how this tokenizer splits"),
    ({"model": 3}, "cannot be read"),
])  # fmt: skip
def test_a_tokenizer_that_gguf_cannot_hold_is_refused_in_one_line(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    content = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "pre_tokenizer": {"type": "ByteLevel"}} | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(EngineError, match=says) as error:
        vocabulary(tmp_path, 9)
    assert "\n" not in str(error.value)


def test_without_a_tokenizer_nothing_is_written(tmp_path: Path) -> None:
    library()
    for folder in (None, tmp_path):
        with pytest.raises(EngineError, match="tokenizer"):
            write_file(decoder_of("gpt2"), folder, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(("spec", "kind"), [
    (INT8, "Q8_0"), (int_scheme(8, 64, True), "Q8_0"), (int_scheme(6, 32, True), "Q8_0"), (int_scheme(5, 64, True), "Q5_0"),
    (int_scheme(4, 64, True), "Q4_0"), (int_scheme(3, 0, True), "Q4_0"), (WeightScheme(FORMATS["mxfp4"], 32), "MXFP4"),
], ids=str)  # fmt: skip
def test_other_grids_are_the_same_numbers_in_blocks(spec: WeightScheme, kind: str) -> None:
    gguf = library()
    torch.manual_seed(0)
    weight = torch.randn(12, 128) * 0.1
    rounded = quantize(weight, minmax(weight, spec))
    found, blocks = stored("layer", rounded)
    assert found == kind
    assert (gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind]) == rounded.dequantize().numpy()).all()


@pytest.mark.parametrize(("spec", "inputs"), [(int_scheme(4, 64, False), 128), (INT8, 40), (WeightScheme(FORMATS["nvfp4"], 16), 128),
                                              (int_scheme(4, 16, True), 128), (scheme("q4_k"), 128)], ids=str)  # fmt: skip
def test_a_grid_without_blocks_is_refused_by_name(spec: WeightScheme, inputs: int) -> None:
    with pytest.raises(EngineError, match=r"GGUF has no blocks for .*, which a\.layer") as error:
        kind_of("a.layer", spec, inputs)
    assert "q4_k_m" in str(error.value)


def test_an_architecture_without_a_mapping_is_refused() -> None:
    from families import build

    with pytest.raises(EngineError, match="knows no opt"):
        architecture(build("opt").config)


def test_activations_that_were_rounded_are_told(source: Path, tmp_path: Path) -> None:
    library()
    said = write_file(on_integers(model_of("llama"), INT8, DYNAMIC), source, tmp_path / "model.gguf")
    assert "activations of 15 matrices" in said


def test_a_file_that_is_cut_off_is_refused_in_one_line(source: Path, tmp_path: Path) -> None:
    from engine.export.gguf_run import opened, tensors_of

    decoder = decoder_of("llama")
    path = written(decoder, source, tmp_path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:40], b"", b"GGUF", b"no such file at all" * 9):
        path.write_bytes(content)
        for read in (tensors_of, lambda at: opened(at, decoder.twin.config)):
            with pytest.raises(EngineError) as error:
                read(path)
            assert "\n" not in str(error.value) and "gguf" in str(error.value)


@torch.no_grad()
def test_rotary_factors_of_llama_3_are_those_of_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            "rope_theta": 10000.0}  # fmt: skip
    config = model_of("llama", rope_parameters=rope).config
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    factors = ARCHITECTURES["llama"].rotary(config)
    plain = 1 / 10000.0 ** (torch.arange(0, 64, 2) / 64)
    assert factors is not None and torch.allclose(plain / factors, frequencies, rtol=1e-5)


@torch.no_grad()
def test_a_model_is_loaded_from_the_file_alone_and_named_as_what_it_is(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="uv sync --group bench")
    from engine.models.transformers_load import load_language

    decoder = decoder_of("gpt2")
    path = written(decoder, source, tmp_path)
    language = load_language(str(path))
    assert language.source == "GGUF file" and language.context == 64
    assert "quantized already (18 F32, 8 Q4_K, 2 Q6_K)" in language.notes[0]
    ids = torch.randint(0, ROWS, (2, 24), generator=torch.Generator().manual_seed(1))
    assert torch.equal(language.logits(ids), decoder.twin(input_ids=ids, use_cache=False).logits)
    text = "the quick brown fox 123 jumps\n\n over!"
    assert language.tokenizer(text)["input_ids"] == tokenizer()(text)["input_ids"]


@pytest.mark.parametrize(("content", "says"), [
    (b"", "does not begin with GGUF"), (b"no such file", "does not begin with GGUF"), (b"GGUF" + (3).to_bytes(4, "big"), "big-endian"),
    (b"GGUF" + (1).to_bytes(4, "little"), "version 1"), (b"GGUF" + (3).to_bytes(4, "little") + bytes(20), "no whole GGUF file"),
])  # fmt: skip
def test_a_file_that_is_no_model_is_refused_in_one_line(content: bytes, says: str, tmp_path: Path) -> None:
    library()
    pytest.importorskip("accelerate", reason="uv sync --group bench")
    from engine.models.transformers_load import load_language

    (path := tmp_path / "some.gguf").write_bytes(content)
    with pytest.raises(EngineError, match=says) as error:
        load_language(str(path))
    assert "\n" not in str(error.value)
    with pytest.raises(EngineError, match="cannot be read"):
        load_language(str(tmp_path / "none.gguf"))


def test_a_type_that_is_not_known_is_refused_in_one_line(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="uv sync --group bench")
    from engine.models.gguf_file import read

    path = written(decoder_of("llama"), source, tmp_path)
    whole = bytearray(path.read_bytes())
    at = whole.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    whole[at : at + 4] = (99).to_bytes(4, "little")
    path.write_bytes(bytes(whole))
    with pytest.raises(EngineError, match="99") as error:
        read(path)
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_a_runner_gives_the_logits_of_whole_windows_and_of_steps(source: Path, tmp_path: Path) -> None:
    from engine.export.base import ExportContext
    from engine.export.gguf import load
    from engine.tasks.base import Batch

    decoder = decoder_of("qwen2")
    runner = load(written(decoder, source, tmp_path), ExportContext(decoder, lowering="modules"))
    ids = torch.randint(0, ROWS, (1, 24), generator=torch.Generator().manual_seed(1))
    wanted = decoder.twin(input_ids=ids, use_cache=False).logits
    assert torch.allclose(runner.run(Batch((), {"input_ids": ids})).logits, wanted, atol=1e-4)
    assert runner.step is not None
    first, cache = runner.step(ids[:, :20], None)
    rest, _ = runner.step(ids[:, 20:], cache)
    assert torch.allclose(torch.cat([first, rest], 1), wanted, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_llama_cpp_itself_computes_the_same(kind: str, source: Path, tmp_path: Path) -> None:
    llama: Any = pytest.importorskip("llama_cpp", reason="uv pip install llama-cpp-python, which is built from source")
    model = model_of(kind)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(0.3)
    path = written(QuantizedDecoder(model, {}), source, tmp_path)
    ids = torch.randint(0, ROWS, (1, 24), generator=torch.Generator().manual_seed(3))
    wanted = model(input_ids=ids, use_cache=False).logits[0]
    run = llama.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=1)
    run.eval(ids[0].tolist())
    found = torch.from_numpy(np.array(run.scores[: ids.shape[1]]))
    # Its cache of keys and values is float16.
    assert (found - wanted).abs().max() < 2e-3 * wanted.abs().max() and torch.equal(found.argmax(1), wanted.argmax(1))
    text = "the quick brown fox 123 jumps over it"
    assert run.tokenize(text.encode(), add_bos=False) == tokenizer()(text)["input_ids"]
