"""A whole decoder to integers: each family, each way of rounding activations, and what calibration sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import tiny_language
import torch
from quantized_families import lively
from torch import Tensor

from engine.errors import Cancelled, EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Ranges
from engine.lowering.modules import block_tuning
from engine.lowering.modules.layers import plan
from engine.lowering.modules.observe import batches, observe
from engine.lowering.modules.quantized import QuantizedDecoder, apply, duplicate
from engine.lowering.modules.rounding import retuned, round_decoder
from engine.models.anatomy import anatomy, weight_of
from engine.recipe.spec import ActivationSpec, LayerSpec, Rule, WeightSpec

FEW = 6


def texts(rows: int = 96) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(rows, (length,), generator=draw) for length in (16, 16, 9, 16, 12, 16)]


def rounded(family: str, preset: str, *rules: Rule, stop: StopToken | None = None, place: Path | None = None) -> QuantizedDecoder:
    model = families.build(family).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = plan(model, anatomy(model), preset, rules, {}, lambda *_: "").layers
    decoder, told = tiny_language.finished(round_decoder(model, rows, texts(), 4, stop or StopToken(), place))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {path for path, matrix in decoder.matrices.items() if not matrix.tied} == set(told)
    return decoder


@pytest.mark.parametrize("preset", ["default", "w8a8-static", "w4"])
@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_the_twin_holds_what_the_integers_stand_for(family: str, preset: str) -> None:
    decoder = rounded(family, preset)
    for path, matrix in decoder.matrices.items():
        held = weight_of(decoder.twin.get_submodule(path))
        assert torch.equal(held, matrix.weight.dequantize()), path
        in_block = ".layers." in path or ".h." in path
        assert (matrix.grid is not None) == (preset == "w8a8-static" and in_block), path
    ids = texts()[0][None]
    model = families.build(family).eval()
    with torch.no_grad():
        before, after = model(input_ids=ids).logits, decoder.twin(input_ids=ids).logits
    bound = 0.05 if preset == "default" else 0.6
    assert float((after - before).norm() / before.norm()) < bound


def test_bytes_count_a_tied_matrix_once_and_the_rest_as_floats() -> None:
    decoder = rounded("gpt2", "default")
    integers = sum(matrix.weight.bytes for path, matrix in decoder.matrices.items() if path != "lm_head")
    rest = decoder.rest()
    assert "transformer.wte.weight" not in rest and "lm_head.weight" not in rest and "transformer.h.0.ln_1.weight" in rest
    assert "transformer.h.0.attn.c_attn.bias" in rest
    assert decoder.bytes == integers + sum(4 * tensor.numel() for tensor in rest.values())


def test_finished_blocks_are_kept_and_stop_stops(tmp_path: Path) -> None:
    first = rounded("gpt2", "w4", place=tmp_path)
    assert len(list(tmp_path.glob("block-*"))) == 2
    again = rounded("gpt2", "w4", place=tmp_path)
    for path, matrix in first.matrices.items():
        assert torch.equal(matrix.weight.codes, again.matrices[path].weight.codes)
    stop = StopToken()
    stop.set()
    with pytest.raises(Cancelled):
        rounded("gpt2", "w4", stop=stop)


def inputs(model: object, path: str, windows: list[Tensor]) -> Tensor:
    found = []
    hook = model.get_submodule(path).register_forward_pre_hook(lambda m, given: found.append(given[0].reshape(-1, given[0].shape[-1])))  # type: ignore[attr-defined]
    with torch.no_grad():
        for ids in windows:
            model(input_ids=ids[None])  # type: ignore[operator]
    hook.remove()
    return torch.cat(found)


def test_ranges_are_those_of_the_tokens_without_what_was_filled_up() -> None:
    model, path = families.build("gpt2").eval(), "transformer.h.1.mlp.c_fc"
    seen: list[Ranges] = []
    steps = observe(model, {path: ActivationSpec(8)}, texts(), 4, StopToken(), counting=True)
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            found = end.value[path]
            break
        seen += [event] if isinstance(event, Ranges) else []
    plain = inputs(model, path, texts())
    assert found.low == pytest.approx(float(plain.min()), abs=1e-5) and found.high == pytest.approx(float(plain.max()), abs=1e-5)
    assert torch.allclose(found.largest, plain.abs().amax(0), atol=1e-5)
    last = seen[-1]
    (row,) = last.rows
    assert last.final and last.seen == FEW and row.channels == 16 and sum(row.bins.counts) == len(plain) * 16


def test_channels_that_stand_out_are_counted() -> None:
    model = families.build("gpt2").eval()
    path = "transformer.h.0.attn.c_attn"
    with torch.no_grad():
        model.transformer.h[0].ln_1.weight[3] = 60.0
    found = tiny_language.finished(observe(model, {path: ActivationSpec(8)}, texts(), 4, StopToken(), counting=False))
    assert found[path].outliers == 1 and int(found[path].largest.argmax()) == 3


def test_values_that_are_not_finite_are_named() -> None:
    model = families.build("gpt2").eval()
    with torch.no_grad():
        model.transformer.h[1].ln_2.bias[0] = float("inf")
    with pytest.raises(EngineError, match=r"what enters transformer\.h\.1\.mlp\.c_fc is NaN or infinite"):
        tiny_language.finished(observe(model, {"transformer.h.1.mlp.c_fc": ActivationSpec(8)}, texts(), 4, StopToken(), counting=False))


def test_batches_fill_up_and_say_so() -> None:
    found = list(batches(texts(), 4))
    assert [tuple(ids.shape) for ids, _ in found] == [(4, 16), (2, 16)]
    keep = found[0][1]
    assert keep is not None and keep.sum(1).tolist() == [16, 16, 9, 16]


@pytest.mark.parametrize("method", ["gptq", "awq+gptq"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_what_training_has_left_alone_keeps_its_sqnr(family: str, method: Any) -> None:
    # A folded scale is fitted to all rows, and takes its part of their noise.
    model = lively(families.build(family, **({"n_embd": 192} if family == "gpt2" else {"hidden_size": 192})))
    few = Rule("kind:*", LayerSpec(WeightSpec(4, "per-channel", symmetric=False, method=method)))
    rows = plan(model, anatomy(model), "w8", [few], {}, lambda *_: "").layers
    decoder, told = tiny_language.finished(round_decoder(model, rows, texts(), 4, StopToken()))
    assert ("awq" in method) == any(note.folded_into for note in told.values())
    blocks = {row.path for row in rows if row.capabilities.role == "block" and row.actual.weights}
    weights = {path: decoder.matrices[path].weight for path in blocks}
    back, found = tiny_language.finished(retuned(decoder, told, model, duplicate(decoder.twin), weights, texts(), 4, StopToken()))
    assert found.keys() == told.keys() and all(back.matrices[path].weight.bytes == found[path].bytes for path in found)
    far = {path: (found[path].sqnr_db, told[path].sqnr_db) for path in told if abs(found[path].sqnr_db - told[path].sqnr_db) > 1.5}
    assert far == {}
    moved = {path: replace(weight, scale=weight.scale * 1.2) for path, weight in weights.items()}
    twin = duplicate(decoder.twin)
    apply(twin, moved)
    _, worse = tiny_language.finished(retuned(decoder, told, model, twin, moved, texts(), 4, StopToken()))
    assert all(worse[path].sqnr_db < min(found[path].sqnr_db, 16) for path in blocks)


def test_learned_rounding_of_a_decoders_matrices_has_no_more_noise_than_gptq() -> None:
    model = lively(families.build("gpt2"))
    told = {}
    for method in ("gptq", "adaround"):
        few = Rule("kind:*", LayerSpec(WeightSpec(3, "per-channel", method=method)))
        rows = plan(model, anatomy(model), "w8", [few], {}, lambda *_: "").layers
        _, told[method] = tiny_language.finished(round_decoder(model, rows, texts(), 4, StopToken()))
    # The first matrix is given the same inputs: those after it read what the ones before have left.
    first = "transformer.h.0.attn.c_attn"
    assert told["adaround"][first].method == "AdaRound"
    assert told["adaround"][first].sqnr_db >= told["gptq"][first].sqnr_db


AUTOROUND = Rule("*layers.*", LayerSpec(WeightSpec(3, "per-group", 16, "autoround", symmetric=False)))


def test_rounding_learned_by_signs_stops_and_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_tuning, "STEPS", 40)

    class After(StopToken):
        left = 70

        def check(self) -> None:
            self.left -= 1
            if self.left < 0:
                raise Cancelled

    with pytest.raises(Cancelled):
        rounded("llama", "w4", AUTOROUND, stop=After(), place=tmp_path)
    assert [path.name for path in tmp_path.glob("block-*")] == ["block-0000.safetensors"]
    found = rounded("llama", "w4", AUTOROUND, place=tmp_path)
    whole = rounded("llama", "w4", AUTOROUND)
    for path, matrix in whole.matrices.items():
        assert torch.equal(matrix.weight.codes, found.matrices[path].weight.codes)
        assert torch.equal(matrix.weight.scale, found.matrices[path].weight.scale)


@torch.no_grad()
@pytest.mark.parametrize(("family", "rest"), [("gpt2", "nearest"), ("llama", "autoround")])
def test_what_is_learned_by_signs_leaves_less_error_than_the_nearest(family: str, rest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_tuning, "STEPS", 60)
    model = lively(families.build(family))
    # Text that the model finds likely in parts: what it is tuned on and judged by comes from one source.
    draw = torch.Generator().manual_seed(1)
    several = [torch.randint(12, (24,), generator=draw) for _ in range(32)]

    def noise(method: str, other: str) -> float:
        spec = WeightSpec(3, "per-group", 16, symmetric=False)
        rules = [
            Rule("*mlp*", LayerSpec(replace(spec, method=method))), Rule("*.h.*", LayerSpec(replace(spec, method=other))),
            Rule("*layers*", LayerSpec(replace(spec, method=other))), Rule("*", LayerSpec()),
        ]  # fmt: skip
        rows = plan(model, anatomy(model), "w4", rules, {}, lambda *_: "").layers
        decoder, told = tiny_language.finished(round_decoder(model, rows, several[:24], 4, StopToken()))
        assert all(
            (note.method == "AutoRound") is (method == "autoround" and ("mlp" in note.name or other == method)) for note in told.values()
        )
        return sum(float((decoder.twin(ids[None]).logits - model(ids[None]).logits).square().sum()) for ids in several[24:])

    assert noise("autoround", rest) < 0.95 * noise("nearest", "nearest")
