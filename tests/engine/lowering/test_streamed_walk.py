"""A decoder that is read, rounded and measured block by block, against the same decoder whole in memory."""

from __future__ import annotations

import gc
import json
import shutil
from argparse import Namespace
from collections.abc import Generator
from pathlib import Path
from typing import Any

import families
import pytest
import safetensors
import safetensors.torch
import tiny_language
import torch
from quantized_families import lively
from safetensors.torch import load_file, save_file
from torch import Tensor

import engine
from engine.errors import Cancelled, EngineError
from engine.events.cancellation import StopToken
from engine.kernels.probe import probe
from engine.lowering.modules import block_checkpoint, hidden_states
from engine.lowering.modules.artifact import to_bytes
from engine.lowering.modules.by_block import logits_by_block
from engine.lowering.modules.fused_activations import fuse_activations
from engine.lowering.modules.layers import plan
from engine.lowering.modules.progress import MatrixQuantized
from engine.lowering.modules.rounding import round_decoder
from engine.lowering.modules.runtime import running
from engine.lowering.modules.walk import Rounded, Texts, walk
from engine.lowering.modules.walked_content import WalkedContent
from engine.models.anatomy import anatomy
from engine.models.shards import shards_of
from engine.models.transformers_folder import look
from engine.models.unread import unread
from engine.numerics.qtensor import QTensor
from engine.paths import unwritable
from engine.recipe.spec import Rule


def texts(rows: int = 96) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(rows, (length,), generator=draw) for length in (16, 16, 9, 16, 12, 16)]


def saved(family: str, folder: Path, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
    """A random decoder in several shards."""
    model = lively(families.build(family, **changes)).to(dtype)
    model.save_pretrained(folder, max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def whole(folder: Path) -> Any:
    import transformers

    decoders: Any = transformers.AutoModelForCausalLM
    model = decoders.from_pretrained(folder, dtype=torch.float32).eval()
    fuse_activations(model)
    return model


def rows_of(model: Any, preset: str, *rules: Rule) -> Any:
    return plan(model, anatomy(model), preset, rules, {}, lambda *_: "").layers


def walking(folder: Path, place: Path, preset: str, *rules: Rule, stop: StopToken | None = None) -> Generator[Any, None, Rounded]:
    found = look(folder)
    model, source = unread(found, shards_of(found.weights))
    fuse_activations(model)
    given = texts()
    told = Texts(given, 4, given[3:])
    return walk(model, source, rows_of(model, preset, *rules), told, probe(), stop or StopToken(), place)


def walked(folder: Path, place: Path, preset: str, *rules: Rule) -> Rounded:
    return tiny_language.finished(walking(folder, place, preset, *rules))


def packed(found: Rounded) -> dict[str, Tensor]:
    """Everything that the blocks' files hold."""
    return {name: tensor for path in found.files for name, tensor in load_file(path).items()}


def same(first: QTensor, second: dict[str, Tensor], name: str) -> None:
    for part, tensor in first.to_tensors().items():
        assert torch.equal(tensor, second[f"packed/{name}/{part}"]), (name, part)


@pytest.mark.parametrize("preset", ["default", "w4", "w4a8", "w8a8", "w8"])
@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_integers_and_logits_are_those_of_the_whole_model_bit_for_bit(family: str, preset: str, tmp_path: Path) -> None:
    folder = saved(family, tmp_path / "model")
    found = walked(folder, tmp_path / "blocks", preset)
    model, machine = whole(folder), probe()
    decoder, told = tiny_language.finished(round_decoder(model, rows_of(model, preset), texts(), 4, StopToken()))
    kernels, placement = running(decoder, machine)
    held = packed(found)
    for path, matrix in decoder.matrices.items():
        if path in found.outside:
            assert torch.equal(matrix.weight.codes, found.outside[path].weight.codes), path
        else:
            same(matrix.weight, held, path)
    assert {path: note.sqnr_db for path, note in told.items()} == {path: note.sqnr_db for path, note in found.told.items()}
    assert placement == found.placement
    assert found.fp32 is not None and found.quantized is not None
    with torch.inference_mode():
        for ids in texts()[3:]:
            assert torch.equal(model(input_ids=ids[None], use_cache=False).logits, found.fp32(ids[None]).logits)
            assert torch.equal(kernels(input_ids=ids[None], use_cache=False).logits, found.quantized(ids[None]).logits)


def test_hidden_states_that_do_not_fit_lie_in_files_and_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved("qwen2", tmp_path / "model")
    first = walked(folder, tmp_path / "first", "w4")
    assert not list((tmp_path / "first").glob("hidden*"))
    monkeypatch.setattr(hidden_states, "FITTING", 0)
    second = walked(folder, tmp_path / "second", "w4")
    assert list((tmp_path / "second").glob("hidden*/*.hidden")) and list((tmp_path / "second").glob("hidden*/*.original"))
    held, again = packed(first), packed(second)
    assert held.keys() == again.keys() and all(torch.equal(held[name], again[name]) for name in held)
    assert first.quantized is not None and second.quantized is not None and second.fp32 is not None
    ids = texts()[3][None]
    with torch.inference_mode():
        assert torch.equal(first.quantized(ids).logits, second.quantized(ids).logits)
        assert torch.equal(whole(folder)(input_ids=ids, use_cache=False).logits, second.fp32(ids).logits)
    del second
    gc.collect()
    assert not list((tmp_path / "second").glob("hidden*")), "the files go with what needs them"


def test_a_walk_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    folder, place = saved("llama", tmp_path / "model", num_hidden_layers=3), tmp_path / "blocks"
    expected = packed(walked(folder, tmp_path / "other", "w4"))
    stop = StopToken()
    steps = walking(folder, place, "w4", stop=stop)
    while not (isinstance(event := next(steps), MatrixQuantized) and event.name.endswith("layers.1.mlp.up_proj")):
        pass
    stop.set()
    with pytest.raises(Cancelled):
        list(steps)
    assert [path.name for path in sorted(place.glob("block-*"))] == ["block-0000.safetensors"]
    found = walked(folder, place, "w4")
    assert {name for name, note in found.told.items() if note.kept} == {name for name in found.told if ".layers.0." in name}
    held = packed(found)
    assert held.keys() == expected.keys() and all(torch.equal(held[name], expected[name]) for name in held)


def test_blocks_of_other_weights_or_text_are_not_taken(tmp_path: Path) -> None:
    folder, place = saved("llama", tmp_path / "model"), tmp_path / "blocks"
    walked(folder, place, "w4")
    again = walked(folder, place, "w4")
    assert all(note.kept for name, note in again.told.items() if ".layers." in name)
    shard = next(path for path in sorted(folder.glob("*.safetensors")) if any(".layers.1." in name for name in load_file(path)))
    tensors = load_file(shard)
    name = next(name for name in tensors if ".layers.1." in name and tensors[name].dim() == 2)
    tensors[name][0, 0] += 1
    save_file(tensors, shard)
    changed = walked(folder, place, "w4")
    kept = {name for name, note in changed.told.items() if note.kept}
    assert kept == {name for name in changed.told if ".layers.0." in name}, "block 0 is the same, block 1 is not"


@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_the_file_is_that_of_the_whole_model_in_one_part_or_in_several(family: str, tmp_path: Path) -> None:
    folder = saved(family, tmp_path / "model")
    found_in = look(folder)
    model, source = unread(found_in, shards_of(found_in.weights))
    fuse_activations(model)
    found = walked(folder, tmp_path / "blocks", "default")
    in_memory = whole(folder)
    decoder, _ = tiny_language.finished(round_decoder(in_memory, rows_of(in_memory, "default"), texts(), 4, StopToken()))
    about = json.loads(safetensors.safe_open(_written(to_bytes(decoder, "a: b", "isa"), tmp_path), "pt").metadata()["qtui"])
    expected = safetensors.torch.load(to_bytes(decoder, "a: b", "isa"))
    for largest in (10**9, 6000):
        content = WalkedContent(model, source, found, "a: b", "isa", largest)
        (place := tmp_path / str(largest)).mkdir()
        names = content.write(place)
        assert len(content) == sum(path.stat().st_size for path in place.glob("*.safetensors"))
        assert sorted(path.name for path in place.iterdir()) == sorted(names)
        assert (names[0] == "model.safetensors") == (largest > 6000)
        assert all(path.stat().st_size <= largest + 20_000 for path in place.glob("*.safetensors"))
        held = {name: tensor for path in place.glob("*.safetensors") for name, tensor in load_file(path).items()}
        assert held.keys() == expected.keys() and all(torch.equal(held[name], expected[name]) for name in held)
        assert all(held[name].dtype == expected[name].dtype for name in held)
        with safetensors.safe_open(place / names[-1], "pt") as file:
            assert json.loads(file.metadata()["qtui"]) == about
        loaded = engine.load_quantized(place)
        kernels, _ = running(decoder, probe())
        ids = texts()[0][None]
        with torch.inference_mode():
            assert torch.equal(loaded.on_kernels()(input_ids=ids).logits, kernels(input_ids=ids).logits)
        assert torch.equal(logits_by_block(loaded.file, [ids], probe())[0], kernels(input_ids=ids, use_cache=False).logits)
        assert torch.equal(loaded(ids), torch.cat(logits_by_block(loaded.file, [ids])))


def _written(content: bytes, place: Path) -> Path:
    (place / "whole.safetensors").write_bytes(content)
    return place / "whole.safetensors"


def gone(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].unlink()


def cut(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-100])


def lacking(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, shard)


def widened(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))


def without_end(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    name = next(name for name in tensors if ".layers." in name)
    tensors[name].flatten()[0] = float("inf")
    save_file(tensors, shard)


BAD = {
    "a shard is missing": (gone, "lacks 1 of"), "a shard is half written": (cut, "bytes: copy or download it again"),
    "a tensor is missing": (lacking, r"lacks (model|lm_head)\."), "the config is of another model": (widened, "config.json asks for"),
    "a weight is infinite": (without_end, "holds NaN or infinity in model.layers"),
}  # fmt: skip


@pytest.mark.parametrize("why", sorted(BAD))
def test_a_damaged_folder_is_told_in_a_line(why: str, tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "model")
    damage, words = BAD[why]
    damage(folder)
    with pytest.raises(EngineError, match=words) as caught:
        walked(folder, tmp_path / "blocks", "w8")
    assert "\n" not in str(caught.value)


def test_a_disk_that_is_full_in_the_middle_loses_no_finished_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, place = saved("llama", tmp_path / "model", num_hidden_layers=3), tmp_path / "blocks"
    own, written = block_checkpoint.save_file, []

    def full(path: Path, content: bytes) -> None:
        if written:
            raise unwritable(path, OSError(28, "No space left on device"))
        written.append(path)
        own(path, content)

    monkeypatch.setattr(block_checkpoint, "save_file", full)
    with pytest.raises(EngineError, match=r"block-0001.safetensors cannot be written \(No space left on device\)"):
        walked(folder, place, "w4")
    assert [path.name for path in sorted(place.glob("*"))] == ["block-0000.safetensors"]
    monkeypatch.undo()
    assert sum(note.kept for note in walked(folder, place, "w4").told.values()) == 7


def test_hidden_states_that_no_disk_holds_are_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved("llama", tmp_path / "model")
    monkeypatch.setattr(hidden_states, "FITTING", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Namespace(free=10))
    with pytest.raises(EngineError, match="hidden states of the text need"):
        walked(folder, tmp_path / "blocks", "w4")
