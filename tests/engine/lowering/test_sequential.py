"""The block-by-block driver: what it changes, holds, says, and goes on from."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_decoders import blocks_of, captured, decoder
from torch import nn

from engine.algorithms.awq import awq
from engine.algorithms.gram import Gram
from engine.algorithms.registry import METHODS, Method
from engine.errors import Cancelled, EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice, Progress
from engine.lowering.modules import blocks as sequential
from engine.lowering.modules import statistics
from engine.lowering.modules.blocks import Task, quantize_blocks
from engine.lowering.modules.capture import Batch
from engine.lowering.modules.progress import MatrixQuantized
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import int_scheme

SPEC = int_scheme(3, 16)


def quantized(
    model: nn.Module, choose: Callable[[str], Task | None], family: str = "gpt2", on: Callable[[Event], object] = bool, **more: Any
) -> dict[str, QTensor]:
    steps = quantize_blocks(blocks_of(model, family), captured(model, family), choose, **more)
    while True:
        try:
            on(next(steps))
        except StopIteration as end:
            return dict(end.value)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("family", ["gpt2", "llama with shared keys and values", "opt"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_leaves_weights_that_are_what_its_integers_stand_for(name: str, family: str) -> None:
    model = decoder(family)
    events: list[Event] = []
    packed = quantized(model, lambda _: Task(SPEC, name), family, events.append)
    modules = dict(model.named_modules())
    assert (
        len(packed)
        == len([e for e in events if isinstance(e, MatrixQuantized)])
        == (8 if family == "gpt2" else 14 if "llama" in family else 12)
    )
    for path, weight in packed.items():
        held = modules[path].weight
        assert torch.equal(weight.dequantize(), held.T if family == "gpt2" else held)
        assert weight.codes.max() <= 7 and weight.scheme == SPEC
    progress = [e for e in events if isinstance(e, Progress)]
    assert progress[-1].done == progress[-1].total == len(packed)
    told = [e for e in events if isinstance(e, MatrixQuantized)]
    assert all(6 < e.sqnr_db < 40 for e in told)
    if METHODS[name].tuned:
        assert all(e.note for e in told)
    else:
        assert all(e.note is None or e.note.startswith("rounded to nearest on the ") for e in told)
        assert METHODS[name].judged or all(e.note is None for e in told)


def test_gptq_comes_nearer_to_the_model_than_rounding_to_nearest() -> None:
    ids = torch.randint(1, 50, (8, 20), generator=torch.Generator().manual_seed(99))
    off = {}
    with torch.no_grad():
        wanted = decoder()(ids).last_hidden_state
        for name in ("nearest", "gptq"):
            model = decoder()
            quantized(model, lambda _, name=name: Task(SPEC, name))
            off[name] = float((model(ids).last_hidden_state - wanted).square().mean())
    assert off["gptq"] < 0.8 * off["nearest"]


def test_a_bias_takes_up_the_mean_of_the_error() -> None:
    model, plain = decoder(), decoder()
    batches = captured(plain)
    quantized(model, lambda name: Task(SPEC, "gptq") if name == "h.0.attn.c_attn" else None)
    first, second = (m.get_submodule("h.0") for m in (model, plain))
    with torch.no_grad():
        got, wanted = (torch.cat([b.attn.c_attn(b.ln_1(x.hidden))[x.keep] for x in batches]) for b in (first, second))  # type: ignore
    assert (got - wanted).abs().max() > 0.05 and torch.allclose(got.mean(0), wanted.mean(0), atol=1e-4)


def test_layers_behind_are_calibrated_on_what_quantized_layers_put_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    original = sequential.statistics

    def watched(*args: Any) -> Gram:
        seen.append((gram := original(*args)).second)
        return gram

    monkeypatch.setattr(sequential, "statistics", watched)
    quantized(decoder(), lambda name: Task(SPEC, "gptq") if name == "h.0.mlp.c_fc" else Task(int_scheme(8, 0), "gptq"))
    fine = [second.clone() for second in seen]
    seen.clear()
    quantized(decoder(), lambda _: Task(int_scheme(8, 0), "gptq"))
    same_as = [
        torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.diagonal().mean())) for one, other in zip(fine, seen, strict=True)
    ]
    assert same_as == [True] * 3 + [False] * 5


def test_layers_that_are_not_asked_for_stay_as_they_are() -> None:
    model, before = decoder(), state(decoder())
    packed = quantized(model, lambda name: Task(SPEC, "gptq") if name.endswith("c_fc") else None)
    assert sorted(packed) == ["h.0.mlp.c_fc", "h.1.mlp.c_fc"]
    changed = {name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])}
    assert changed == {f"h.{i}.mlp.c_fc.{part}" for i in (0, 1) for part in ("weight", "bias")}


@pytest.mark.parametrize("name", ["gptq", "awq+gptq", "gptq+"])
def test_statistics_of_one_group_are_in_memory_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[object] = weakref.WeakSet()
    most = 0

    class Watched(Gram):
        __hash__ = object.__hash__
        __eq__ = object.__eq__

        def __post_init__(self) -> None:
            nonlocal most
            super().__post_init__()
            alive.add(self)
            most = max(most, len(alive))

    monkeypatch.setattr(statistics, "Gram", Watched)
    quantized(decoder(), lambda _: Task(SPEC, name))
    assert most == 1


@pytest.mark.parametrize(
    "name", ["awq+gptq", "gptq+", "hqq", replace(METHODS["gptq+"], scaling=awq)], ids=["awq+gptq", "gptq+", "hqq", "own"]
)
def test_an_interrupted_run_goes_on_bit_for_bit(name: str | Method, tmp_path: Path) -> None:
    whole, stopped = decoder(), decoder()
    wanted = quantized(whole, lambda _: Task(SPEC, name))
    stop = StopToken()

    def stop_in_the_second_block(event: Event) -> None:
        if isinstance(event, MatrixQuantized) and event.name == "h.1.attn.c_attn":
            stop.set()

    with pytest.raises(Cancelled):
        quantized(stopped, lambda _: Task(SPEC, name), on=stop_in_the_second_block, stop=stop, checkpoints=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["block-0000.safetensors"]
    again, events = decoder(), list[Event]()
    got = quantized(again, lambda _: Task(SPEC, name), on=events.append, checkpoints=tmp_path)
    assert {e.name for e in events if isinstance(e, MatrixQuantized) and not e.kept} == {n for n in wanted if n.startswith("h.1.")}
    assert same(state(again), state(whole))
    assert wanted.keys() == got.keys() and all(same(wanted[n].to_tensors(), got[n].to_tensors()) for n in wanted)


@pytest.mark.parametrize(
    ("seed", "task", "done"),
    [(0, Task(SPEC, "mse"), 0), (1, Task(SPEC, "mse"), 8), (0, Task(SPEC, "hqq"), 8), (0, Task(int_scheme(4, 16), "mse"), 8)],
)
def test_a_checkpoint_serves_the_same_run_alone(seed: int, task: Task, done: int, tmp_path: Path) -> None:
    quantized(decoder(), lambda _: Task(SPEC, "mse"), checkpoints=tmp_path)
    events: list[Event] = []
    quantized(decoder(seed=seed), lambda _: task, on=events.append, checkpoints=tmp_path)
    assert len([e for e in events if isinstance(e, MatrixQuantized) and not e.kept]) == done
    told = [event.text for event in events if isinstance(event, Notice)]
    assert told == (["2 of 2 blocks were kept for another recipe, model or text: rounded again"] if done else [])


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    quantized(decoder(), lambda _: Task(SPEC, "mse"), checkpoints=tmp_path)
    path = tmp_path / "block-0001.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(EngineError, match=r"block-0001\.safetensors is damaged"):
        quantized(decoder(), lambda _: Task(SPEC, "mse"), checkpoints=tmp_path)


def test_a_stop_is_heard_within_a_batch() -> None:
    stop, ran = StopToken(), 0
    model = decoder()

    def count(*_: object) -> None:
        nonlocal ran
        ran += 1
        if ran == 3:
            stop.set()

    batches = captured(model)
    model.get_submodule("h.0.ln_1").register_forward_pre_hook(count)
    with pytest.raises(Cancelled):
        list(quantize_blocks(blocks_of(model), batches, lambda _: Task(SPEC, "gptq"), stop))
    assert ran == 3


def test_a_layer_that_no_text_reaches_is_rounded_to_nearest_and_it_is_said() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.used(hidden))

    block = Routed()
    batches = [Batch(torch.randn(2, 5, 32), None, [((), {})])]
    events = [e for e in quantize_blocks([("0", block)], batches, lambda _: Task(SPEC, "gptq")) if isinstance(e, MatrixQuantized)]
    assert [(e.name, e.note) for e in events] == [("0.used", None), ("0.idle", "no calibration text reached it: rounded to nearest")]
