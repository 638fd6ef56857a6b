"""A decoder's file: what is read is what was written, bit for bit, and what is no such file is told in a line."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized_families import DYNAMIC, NAMES, decoder_of, family, lively, some_ids
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_language import gpt2

import engine
import engine.lowering.graph.artifact
from engine.errors import EngineError
from engine.kernels.probe import probe
from engine.lowering.modules.artifact import read, read_with_header, to_bytes
from engine.lowering.modules.loaded import LoadedDecoder, rounded
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.lowering.modules.runtime import running
from engine.numerics.qparams import QParams
from engine.numerics.quantized_matrix import QuantizedMatrix
from engine.numerics.scheme import WeightScheme, int_scheme
from engine.recipe.spec import ActivationSpec

SPECS = [int_scheme(3, 16), int_scheme(3, 0, True), int_scheme(4, 32, True), int_scheme(4, 5), int_scheme(8, 0, True), int_scheme(2, 7)]


def stored(decoder: QuantizedDecoder, folder: Path) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(to_bytes(decoder, "model: tiny\n", "AVX512"))
    return path


def same(one: QuantizedDecoder, two: QuantizedDecoder) -> None:
    state = two.twin.state_dict()
    assert state.keys() == one.twin.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in one.twin.state_dict().items())
    assert one.matrices.keys() == two.matrices.keys()
    for path, matrix in one.matrices.items():
        other = two.matrices[path]
        assert (matrix.weight.scheme, matrix.activations, matrix.grid, matrix.tied) == (
            other.weight.scheme,
            other.activations,
            other.grid,
            other.tied,
        )
        assert torch.equal(matrix.weight.codes, other.weight.codes) and torch.equal(matrix.weight.scale, other.weight.scale)
        assert (matrix.weight.zero is None) == (other.weight.zero is None)
    assert torch.equal(one.twin(some_ids()).logits, two.twin(some_ids()).logits)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    decoder = family(name)
    path = stored(decoder, tmp_path)
    same(decoder, read(path))
    # A header of JSON is all there is besides what the decoder says of itself.
    with path.open("rb") as file:
        assert path.stat().st_size - 8 - int.from_bytes(file.read(8), "little") == decoder.bytes


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("embeddings", [None, int_scheme(3, 8), int_scheme(8, 0, True)], ids=str)
def test_every_grid_comes_back_with_a_tied_head(spec: WeightScheme, embeddings: WeightScheme | None, tmp_path: Path) -> None:
    decoder = decoder_of(lively(gpt2(rows=96)), spec, embeddings)
    again = read(stored(decoder, tmp_path))
    same(decoder, again)
    assert again.twin.lm_head.weight is again.twin.transformer.wte.weight
    assert again.bytes == decoder.bytes


def test_activations_and_what_was_asked_come_back(tmp_path: Path) -> None:
    decoder = family("llama", activations=DYNAMIC)
    first = "model.layers.0.mlp.up_proj"
    static = ActivationSpec(7, True, "histogram-mse")
    matrices = {**decoder.matrices, first: QuantizedMatrix(decoder.matrices[first].weight, static, QParams(0.013, 64, 127))}
    again, about = read_with_header(stored(QuantizedDecoder(decoder.twin, matrices), tmp_path))
    same(QuantizedDecoder(decoder.twin, matrices), again)
    assert (about["recipe"], about["isa"]) == ("model: tiny\n", "AVX512")


def test_reading_draws_no_random_numbers_and_keeps_no_places(tmp_path: Path) -> None:
    decoder = family("gpt2")
    decoder.twin.config._name_or_path = "/home/somebody/model"
    path = stored(decoder, tmp_path)
    assert b"somebody" not in path.read_bytes()
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    read(path)
    assert torch.equal(torch.rand(1), wanted)


def test_scripts_get_logits_with_activations_rounded(tmp_path: Path) -> None:
    decoder = family("qwen2", activations=DYNAMIC)
    stored(decoder, tmp_path)
    model = engine.load_quantized(tmp_path)
    assert isinstance(model, LoadedDecoder)
    ids = some_ids()
    plain = decoder.twin(ids).logits
    found = model(ids)
    assert found.shape == plain.shape and 0 < (found - plain).abs().max() < 0.2 * plain.abs().max()
    assert torch.equal(model(ids[0]), model(ids[:1]))
    assert torch.equal(model.decoder.twin(ids).logits, plain), "no rounding is left in the model"
    for wrong in (torch.tensor([[96]]), torch.tensor([[-1]]), torch.ones(1, 2), torch.ones(1, 0, dtype=torch.int64)):
        with pytest.raises(EngineError, match=r"0 to 95"):
            model(wrong)


def test_rounding_agrees_with_plain_numbers() -> None:
    x = torch.tensor([[1.0, -0.5, 0.004], [254.0, 1.1, -3.0]])
    weight = family("gpt2").matrices["transformer.h.0.mlp.c_fc"].weight
    dynamic = rounded(x, QuantizedMatrix(weight, DYNAMIC))
    assert torch.allclose(dynamic, torch.tensor([[1.0, -64 / 127, 1 / 127], [254.0, 2.0, -4.0]]), atol=1e-6)
    static = rounded(x, QuantizedMatrix(weight, ActivationSpec(), QParams(0.5, 3, 255)))
    assert torch.equal(static, torch.tensor([[1.0, -0.5, 0.0], [126.0, 1.0, -1.5]]))


def test_images_do_without_transformers() -> None:
    tree = ast.parse(Path(engine.lowering.graph.artifact.__file__).read_text(encoding="utf-8"))
    always = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert always and not [name for name in always if name.startswith(("engine.lowering.modules", "engine.data.text", "transformers"))]


Parts = tuple[dict[str, Any], dict[str, torch.Tensor]]
HEAD, CONFIG = "transformer.h.0.attn.c_attn", "config"


def broken(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def to(path: Path) -> None:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["qtui"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        change(about, tensors)
        save_file(tensors, path, {"qtui": json.dumps(about)})

    return to


def setting(*keys: str, value: Any) -> Callable[[Path], None]:
    def change(about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for key in keys[:-1]:
            about = about[key]
        about[keys[-1]] = value

    return broken(change)


def tensor(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return broken(lambda about, tensors: tensors.update({name: make(tensors.get(name, torch.ones(1)))}))


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gone": (lambda p: p.unlink(), "does not exist"),
    "empty": (lambda p: p.write_bytes(b""), "whole safetensors"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-7]), "whole safetensors"),
    "rubbish": (lambda p: p.write_bytes(bytes(range(256)) * 9), "whole safetensors"),
    "no header": (lambda p: save_file({"a": torch.ones(1)}, p), "schema 1"),
    "another schema": (setting("schema", value=2), "schema 1"),
    "no config": (setting(CONFIG, value=None), "damaged"),
    "unknown model": (setting(CONFIG, "model_type", value="resnet"), "no decoder of type 'resnet'"),
    "another model": (setting(CONFIG, "model_type", value="llama"), "damaged"),
    "code of its own": (setting(CONFIG, "auto_map", value={"AutoConfig": "evil.Config"}), "never does"),
    "a billion blocks": (setting(CONFIG, "n_layer", value=10**9), "1000000000 blocks"),
    "a wide vocabulary": (setting(CONFIG, "vocab_size", value=10**11), "damaged"),
    "a config of words": (setting(CONFIG, "n_embd", value="wide"), "damaged"),
    "another matrix": (setting("matrices", HEAD, "shape", value=[48, 15]), "damaged"),
    "9 bits": (setting("matrices", HEAD, "bits", value=9), "damaged"),
    "negative groups": (setting("matrices", HEAD, "group_size", value=-4), "damaged"),
    "no shape": (setting("matrices", HEAD, "shape", value=None), "damaged"),
    "a matrix of nothing": (setting("matrices", "transformer.h.0.ln_1", value={}), "damaged"),
    "tied to another": (setting("matrices", "lm_head", "tied", value=HEAD), "damaged"),
    "tied to nothing": (setting("matrices", "lm_head", "tied", value="somewhere"), "damaged"),
    "odd activations": (setting("matrices", HEAD, "activations", value={"bits": 99}), "damaged"),
    "an odd grid": (setting("matrices", HEAD, "grid", value={"scale": 0.0, "zero_point": 0, "qmax": 255}), "damaged"),
    "scales missing": (broken(lambda about, tensors: tensors.pop(f"matrix/{HEAD}/scale")), "damaged"),
    "infinite scales": (tensor(f"matrix/{HEAD}/scale", lambda t: torch.full_like(t, float("inf"))), "damaged"),
    "short integers": (tensor(f"matrix/{HEAD}/packed", lambda t: t[:, :-1].contiguous()), "damaged"),
    "a norm missing": (broken(lambda about, tensors: tensors.pop("rest/transformer.ln_f.weight")), "damaged"),
    "a norm of NaN": (tensor("rest/transformer.ln_f.weight", lambda t: t * float("nan")), "damaged"),
    "a norm of halves": (tensor("rest/transformer.ln_f.weight", lambda t: t.half()), "damaged"),
    "a longer norm": (tensor("rest/transformer.ln_f.weight", lambda t: torch.ones(99)), "damaged"),
    "tensors of nothing": (tensor("other/thing", lambda t: t), "damaged"),
    "rest of nothing": (tensor("rest/thing", lambda t: t), "damaged"),
    "a buffer of nothing": (tensor("buffer/thing", lambda t: t), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("why", sorted(BAD))
def test_what_is_no_such_file_is_told_in_a_line(why: str, tmp_path: Path) -> None:
    path = stored(family("gpt2"), tmp_path)
    damage, words = BAD[why]
    damage(path)
    with pytest.raises(EngineError, match=words) as caught:
        read(path)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(str(path)) and len(line) < 400
    with pytest.raises(EngineError):
        engine.load_quantized(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(tmp_path: Path) -> None:
    stored(family(NAMES[0]), tmp_path)
    with pytest.raises(EngineError, match="no GPU"):
        engine.load_quantized(tmp_path).on_kernels("cuda")


def test_a_file_is_run_on_kernels_as_it_was_before_it_was_written(tmp_path: Path) -> None:
    decoder = decoder_of(lively(gpt2()), int_scheme(8, 0, True), activations=DYNAMIC)
    stored(decoder, tmp_path)
    model = engine.load_quantized(tmp_path).on_kernels()
    expected, _ = running(decoder, probe())
    ids = some_ids()
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)
    assert model.generate(ids[:1], max_new_tokens=3, do_sample=False).shape == (1, ids.shape[1] + 3)


def test_a_file_that_does_not_fit_in_memory_is_run_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = family("qwen2", activations=DYNAMIC)
    stored(decoder, tmp_path)
    whole, parts = engine.load_quantized(tmp_path), engine.load_quantized(tmp_path)
    expected = whole(some_ids())
    monkeypatch.setattr("engine.lowering.modules.loaded.available", lambda: 1)
    assert torch.equal(torch.cat([whole(row) for row in some_ids()]), torch.cat([parts(row) for row in some_ids()]))
    assert torch.allclose(parts(some_ids()), expected, atol=1e-5)
    assert "decoder" not in vars(parts), "the whole decoder was read"
