"""Fine-tuning on low-bit weights: it lowers perplexity, returns what it simulated, and is the same whether or not it was resumed."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_language
import torch
import torch.nn.functional as F
from torch import Tensor
from trainings import OnEvent, check_checkpoints_are_told_apart, ended_early, nothing, resumed_and_straight, stream, watched

from engine.data.text.encoded import SequenceData, TextData
from engine.errors import EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.events.event import EpochFinished, Event, Step
from engine.lowering.modules.finetune import Tuned, finetune
from engine.lowering.modules.quantized import apply
from engine.lowering.modules.student import State, Student
from engine.models.anatomy import anatomy, weight_of
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import int_scheme
from engine.numerics.weights import minmax, quantize
from engine.training.finetune import TuneSchedule
from engine.training.text_batches import batches
from engine.training.trainable import TrainingContext

SCHEDULE = TuneSchedule(epochs=3, context=32, windows=24, tokens=128, lr=3e-3, places=3, judged=None, mixed=False)
SPEC = int_scheme(2, 8)


TEXT = TextData("tiny", {"train": stream(60, 1), "validation": stream(12, 2), "test": stream(12, 3)}, {})
SEQUENCES = SequenceData("tiny.json", {"train": tuple(stream(1, s)[: 9 + s % 5] for s in range(30)), "validation": (stream(2, 50)[:30],)})


def weights_of(model: Any, embeddings: bool = False) -> dict[str, QTensor]:
    found = {}
    for matrix in anatomy(model).matrices:
        if matrix.block is not None or embeddings:
            weight = weight_of(model.get_submodule(matrix.path))
            found[matrix.path] = quantize(weight, minmax(weight, SPEC))
    return found


@cache
def trained() -> Any:
    """A model that knows its text. Not to be changed."""
    model = tiny_language.gpt2(seed=5)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(40):
        ids = TEXT.windows("train", 32, 16, step)
        optimizer.zero_grad()
        F.cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
    return model


@cache
def rounded() -> tuple[Any, Any, dict[str, QTensor]]:
    """The fp32 model, the one of low bits, and its integers. Not to be changed."""
    teacher = trained()
    student = copy.deepcopy(teacher)
    weights = weights_of(teacher)
    apply(student, weights)
    return teacher, student, weights


def tuned(
    schedule: TuneSchedule = SCHEDULE, on_event: OnEvent = nothing, data: TextData | SequenceData = TEXT, **options: Any
) -> tuple[Tuned, list[Event]]:
    stop = StopToken()
    return watched(finetune(*rounded(), data, schedule, TrainingContext(stop, "qat", **options)), stop, on_event)


def answers(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, use_cache=False).logits
        return found


@pytest.mark.parametrize("data", [TEXT, SEQUENCES], ids=["text", "sequences"])
def test_it_comes_nearer_to_the_fp32_model(data: TextData | SequenceData) -> None:
    before = {name: tensor.clone() for name, tensor in rounded()[1].state_dict().items()}
    found, seen = tuned(replace(SCHEDULE, distill=1.0), data=data)
    assert found.losses[-1] < 0.8 * found.losses[0]
    assert found.value == min(found.start, *found.values) == found.values[found.epoch - 1] < found.start
    ids = TEXT.windows("test", 32, 8)
    exact = answers(rounded()[0], ids).log_softmax(-1)
    gaps = [float(F.kl_div(answers(m, ids).log_softmax(-1), exact, log_target=True, reduction="sum")) for m in (found.model, rounded()[1])]
    assert gaps[0] < 0.95 * gaps[1]
    epochs = [event for event in seen if isinstance(event, EpochFinished)]
    assert [e.epoch for e in epochs] == [1, 2, 3] and {e.metric for e in epochs} == {"perplexity"} and {e.stage for e in epochs} == {"qat"}
    assert [e.value for e in epochs] == [*found.values]
    steps = [event for event in seen if isinstance(event, Step)]
    assert steps[-1].done == steps[-1].total == sum(len([*batches(data, 32, 24, 128, e)]) for e in (1, 2, 3))
    assert all(torch.equal(before[name], tensor) for name, tensor in rounded()[1].state_dict().items())


def test_the_integers_it_returns_are_what_it_answered_with() -> None:
    found, _ = tuned(replace(SCHEDULE, places=12, tokens=64))
    ids = TEXT.windows("test", 32, 4)
    again = copy.deepcopy(rounded()[0])
    State(found.weights, {name: p.detach() for name, p in found.model.named_parameters() if p.dim() <= 1}).put(again)
    assert torch.equal(answers(again, ids), answers(found.model, ids))
    assert all(w.scale.dtype == torch.float16 and w.codes.dtype == torch.uint8 for w in found.weights.values())
    changed = [not torch.equal(w.codes, rounded()[2][path].codes) for path, w in found.weights.items()]
    assert any(changed) and len(changed) == 8
    pupil = Student(copy.deepcopy(found.model), found.weights)
    assert torch.equal(pupil.forward(ids), pupil.logits(ids))


def test_where_integers_are_to_stay_only_scales_move() -> None:
    found, _ = tuned(replace(SCHEDULE, places=0))
    assert all(torch.equal(w.codes, rounded()[2][path].codes) for path, w in found.weights.items())
    assert any(not torch.equal(w.scale, rounded()[2][path].scale) for path, w in found.weights.items()) and found.value < found.start


def test_a_tied_head_shares_the_integers_of_the_embedding() -> None:
    model = tiny_language.gpt2(seed=5)
    weights = weights_of(model, embeddings=True)
    pupil = Student(copy.deepcopy(model), weights)
    ids = TEXT.windows("test", 32, 2)
    apply(model, weights)
    assert torch.equal(pupil.forward(ids), answers(model, ids))
    pupil.forward(ids).square().mean().backward()  # type: ignore[no-untyped-call]
    assert len(pupil.groups(1, 1)[0]["params"]) == 8 + 2
    held = pupil.state().weights
    assert held["lm_head"] is held["transformer.wte"] and set(held) == set(weights)


def test_it_keeps_the_start_where_training_does_harm() -> None:
    found, seen = tuned(replace(SCHEDULE, lr=0.1, epochs=1))
    assert found.epoch == 0 and found.value == found.start < found.values[0]
    assert all(torch.equal(w.codes, rounded()[2][path].codes) for path, w in found.weights.items())
    ids = TEXT.windows("test", 32, 4)
    assert torch.equal(answers(found.model, ids), answers(rounded()[1], ids))
    assert [event.best for event in seen if isinstance(event, EpochFinished)] == [False]


def test_a_stopped_training_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    resumed, straight = resumed_and_straight(tuned, "qat", SCHEDULE.epochs, tmp_path)
    assert (resumed.losses, resumed.values, resumed.start) == (straight.losses, straight.values, straight.start)
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])
    for path, weight in straight.weights.items():
        assert torch.equal(weight.codes, resumed.weights[path].codes) and torch.equal(weight.scale, resumed.weights[path].scale)


def test_a_checkpoint_of_another_training_is_not_continued(tmp_path: Path) -> None:
    check_checkpoints_are_told_apart(tuned, replace(SCHEDULE, epochs=1), tmp_path)


def test_enough_keeps_what_there_is() -> None:
    assert len(ended_early(tuned).values) == 1


def test_what_cannot_be_trained_on() -> None:
    with pytest.raises(EngineError, match="no window of 4,096 tokens to train on"):
        tuned(replace(SCHEDULE, context=4096))
    with pytest.raises(EngineError, match="lower the learning rate"):
        tuned(replace(SCHEDULE, lr=1e30, warmup=0))
    with pytest.raises(UsageError, match="no weights to fine-tune"):
        Student(tiny_language.gpt2(), {})


def test_batches_are_whole_windows_or_sequences_each_once() -> None:
    for ids, keep in batches(TEXT, 32, 10, 128, 1):
        assert (ids.shape == (4, 32) and keep.all()) or ids.shape == (2, 32)
    told: list[list[int]] = []
    for ids, keep in batches(SEQUENCES, 32, 100, 64, 1):
        assert ids.numel() <= 64
        told += [row[kept].tolist() for row, kept in zip(ids, keep, strict=True)]
    assert sorted(told) == sorted(s.tolist() for s in SEQUENCES.sequences["train"])
    assert [i.tolist() for i, _ in batches(SEQUENCES, 32, 100, 64, 1)] != [i.tolist() for i, _ in batches(SEQUENCES, 32, 100, 64, 2)]
