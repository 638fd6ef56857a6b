"""A decoder that is read, rounded and measured block by block, against the same decoder whole in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import tiny_language
import torch
from quantized_families import lively
from safetensors.torch import load_file
from torch import Tensor

from engine.events.cancellation import StopToken
from engine.kernels.probe import Machine, probe
from engine.lowering.modules.fused_activations import fuse_activations
from engine.lowering.modules.layers import plan
from engine.lowering.modules.rounding import round_decoder
from engine.lowering.modules.runtime import running
from engine.lowering.modules.walk import Rounded, Texts, walk
from engine.models.anatomy import anatomy
from engine.models.shards import shards_of
from engine.models.transformers_folder import look
from engine.models.unread import unread
from engine.numerics.qtensor import QTensor
from engine.recipe.spec import LayerSpec, Rule, WeightSpec

NEAREST = Rule("*", LayerSpec(WeightSpec(4, "per-group", 16)), None)


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


def walked(folder: Path, place: Path, preset: str, *rules: Rule, machine: Machine | None = None, stop: StopToken | None = None) -> Rounded:
    found = look(folder)
    model, source = unread(found, shards_of(found.weights))
    fuse_activations(model)
    given = texts()
    told = Texts(given, 4, given[3:])
    return tiny_language.finished(walk(model, source, rows_of(model, preset, *rules), told, machine or probe(), stop or StopToken(), place))


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
