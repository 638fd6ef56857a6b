"""engine/training/loop.py and baseline.py: the schedule, the best epoch, and going on after a stop."""

from __future__ import annotations

import json
import math
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import one_thread
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.data.images.base import Data, MemorySplit
from engine.errors import Cancelled, EngineError
from engine.events.cancellation import StopToken
from engine.events.event import EpochFinished, Event, Notice, Progress, Step
from engine.models.registry import ModelEntry
from engine.tasks.base import Batch, Task
from engine.tasks.classification import Classification
from engine.training.baseline import DEFAULTS, schedule_for, train_baseline
from engine.training.checkpoint import Due
from engine.training.loop import fit
from engine.training.precision import Half
from engine.training.schedule import Schedule
from engine.training.sgd import SGD
from engine.training.task_model import ItemSchedule, TaskBatches, TaskModel, measured, parameter_groups, validation
from engine.training.trainable import Fitted, Judge, Judged, TrainingContext


def a_split(count: int, seed: int) -> MemorySplit:
    """Three classes that differ in their channel."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 120, (count, 3, 8, 8), generator=g)
    images[torch.arange(count), labels] += 100
    return MemorySplit(images.to(torch.uint8), labels)


DATA = Data("channels", tuple("rgb"), (3, 8, 8), (0.4,) * 3, (0.3,) * 3, a_split(60, 1), a_split(30, 2), a_split(33, 3), False, 1)  # type: ignore[arg-type]


class Net(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


class InGroups(TaskModel):
    """With parameter groups of its own."""

    groups: list[dict[str, Any]]

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return self.groups


def training(
    model: nn.Module, data: Data, schedule: ItemSchedule, *, groups: Any = None, loss: Any = None, judge: Any = None, **context: Any
) -> Generator[Event, None, Fitted]:
    """``loss`` takes images, logits and labels."""

    def by_batch(batch: Batch, raw: Tensor) -> Tensor:
        return loss(batch.args[0], raw, batch.targets)

    task, where = Classification(data), TrainingContext(**context)
    trained = (InGroups if groups else TaskModel)(model, task, by_batch if loss else None)
    if groups:
        trained.groups = groups
    judged = Judge(judge, "accuracy") if judge else validation(model, task, schedule, where)
    return fit(trained, TaskBatches(task, schedule, where.device), judged, schedule, where)


def run(steps: Any, stop_at: int | None = None, stop: StopToken | None = None) -> tuple[Any, list[Event]]:
    """Result and events; ``stop`` is set at the end of epoch ``stop_at``."""
    seen: list[Event] = []
    with one_thread():
        while True:
            try:
                event = next(steps)
            except StopIteration as end:
                return end.value, seen
            seen.append(event)
            if stop and isinstance(event, EpochFinished) and event.epoch == stop_at:
                stop.set()


def fitted(model: nn.Module, schedule: ItemSchedule, **more: Any) -> Fitted:
    return run(training(model, DATA, schedule, stage="train", stop=more.pop("stop", StopToken()), **more))[0]


SCHEDULE = ItemSchedule(epochs=4, batch=16, lr=0.1)


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine_to_zero() -> None:
    schedule = Schedule(epochs=1, lr=0.5, warmup=0.2)
    rates = [schedule.rate(step, 100) for step in range(100)]
    assert rates[:20] == pytest.approx([0.5 * (step + 1) / 20 for step in range(20)])
    assert rates[20:] == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 80)) for step in range(80)])
    assert rates[19] == max(rates) == 0.5 and 0 < rates[99] < 0.001
    assert rates[20:] == sorted(rates[20:], reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_the_rate_of_very_short_training_is_positive_and_bounded(steps: int) -> None:
    rates = [Schedule(epochs=1, lr=0.5).rate(step, steps) for step in range(steps)]
    assert rates[0] == 0.5 and all(0 < rate <= 0.5 for rate in rates)


def test_the_optimizer_gets_the_schedules_rate() -> None:
    model = net()
    seen = []
    original = SGD.step

    def step(self: Any, *args: Any) -> Any:
        seen.append([group["lr"] for group in self.param_groups])
        return original(self, *args)

    groups = [{"params": [model.conv.weight], "factor": 0.1}, {"params": [model.fc.weight]}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SGD, "step", step)
        fitted(model, SCHEDULE, groups=groups)
    wanted = [SCHEDULE.rate(step, 16) for step in range(16)]
    assert [rates[1] for rates in seen] == pytest.approx(wanted)
    assert [rates[0] for rates in seen] == pytest.approx([0.1 * rate for rate in wanted])


def test_weight_decay_is_for_matrices_alone() -> None:
    model = net()
    decayed, free = parameter_groups(model, 0.3)
    assert {id(p) for p in decayed["params"]} == {id(model.conv.weight), id(model.fc.weight)} and decayed["weight_decay"] == 0.3
    assert len(free["params"]) == 4 and free["weight_decay"] == 0
    model.fc.requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(model, SCHEDULE.weight_decay)) == 4


def test_training_learns_and_tells_each_epoch() -> None:
    model = net()
    result, events = run(training(model, DATA, SCHEDULE, stage="train", stop=StopToken()))
    epochs = [event for event in events if isinstance(event, EpochFinished)]
    assert [(e.epoch, e.epochs, e.stage) for e in epochs] == [(n, 4, "train") for n in (1, 2, 3, 4)]
    assert [e.loss for e in epochs] == list(result.losses) and [e.value for e in epochs] == list(result.values)
    assert result.losses[-1] < result.losses[0]
    assert result.value == max(result.values) > 0.9
    ticks = [event for event in events if isinstance(event, Progress)]
    assert {(tick.total, tick.unit) for tick in ticks} == {(60, "img")}


def test_the_loss_is_the_mean_over_images() -> None:
    """Batches of 16 and a last one of 12: the mean of means would differ."""
    sizes = []

    def loss(x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        sizes.append(len(x))
        return logits.sum() * 0 + len(x)

    result = fitted(net(), ItemSchedule(epochs=1, batch=16, lr=0.1), loss=loss)
    assert sizes == [16, 16, 16, 12] and result.losses == (pytest.approx((3 * 16 * 16 + 12 * 12) / 60),)


def test_the_best_epoch_is_given_back() -> None:
    """A judge that likes the second of four epochs."""
    model, states, scores = net(), [], iter([0.2, 0.9, 0.5, 0.4])

    def judge() -> Generator[Event, None, Judged]:
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        value = next(scores)
        yield Notice("judged")
        return Judged(value, (value,))

    result, events = run(training(model, DATA, SCHEDULE, stage="qat", stop=StopToken(), judge=judge))
    assert (result.epoch, result.value) == (2, 0.9)
    assert all(torch.equal(result.best[name], states[1][name]) for name in states[1])
    assert not torch.equal(result.best["conv.weight"], states[3]["conv.weight"])
    assert [e.best for e in events if isinstance(e, EpochFinished)] == [True, True, False, False]


def test_a_figure_that_is_not_a_number_never_wins() -> None:
    left = iter([math.nan, 0.1, math.nan, 0.0])

    def judge() -> Generator[Event, None, Judged]:
        yield Notice("judged")
        return Judged(0.5, (next(left),))

    assert fitted(net(), SCHEDULE, judge=judge).epoch == 2


def test_equal_epochs_are_told_apart_by_the_second_score_and_then_the_later_wins() -> None:
    def ranked(*scores: tuple[float, ...]) -> tuple[int, list[bool]]:
        left = iter(scores)

        def judge() -> Generator[Event, None, Judged]:
            yield Notice("judged")
            return Judged(0.5, next(left))

        result, events = run(training(net(), DATA, SCHEDULE, stage="qat", stop=StopToken(), judge=judge))
        return result.epoch, [e.best for e in events if isinstance(e, EpochFinished)]

    assert ranked((0.5, 1.0), (0.5, 3.0), (0.5, 2.0), (0.4, 9.0)) == (2, [True, True, False, False])
    assert ranked((0.5, 1.0), (0.5, 1.0), (0.5, 1.0), (0.5, 1.0)) == (4, [True] * 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_in_one_line(bad: float) -> None:
    with pytest.raises(EngineError, match=r"loss is not finite in epoch 1: lower the learning rate \(now 0.1\)") as caught:
        fitted(net(), SCHEDULE, loss=lambda x, logits, y: logits.sum() * bad)
    assert "\n" not in str(caught.value)


def test_a_learning_rate_that_explodes_ends_in_one_line() -> None:
    with pytest.raises(EngineError, match="lower the learning rate"):
        fitted(net(), ItemSchedule(epochs=20, batch=16, lr=1e20))


def test_a_stopped_training_continues_to_the_same_end(tmp_path: Path) -> None:
    whole = fitted(net(), SCHEDULE)
    checkpoint, stop = tmp_path / "deep" / "c.pt", StopToken()
    with pytest.raises(Cancelled):
        run(training(net(), DATA, SCHEDULE, stage="train", stop=stop, checkpoint=checkpoint, fingerprint="a"), stop_at=2, stop=stop)
    torch.manual_seed(99)
    fresh = Net()
    result, events = run(training(fresh, DATA, SCHEDULE, stage="train", stop=StopToken(), checkpoint=checkpoint, fingerprint="a"))
    assert [e.epoch for e in events if isinstance(e, EpochFinished)] == [3, 4]
    assert any(isinstance(e, Notice) and "after epoch 2 of 4" in e.text for e in events)
    assert (result.losses, result.values, result.epoch) == (whole.losses, whole.values, whole.epoch)
    assert all(torch.equal(result.best[name], whole.best[name]) for name in whole.best)


class Dropping(Net):
    """With everything that draws or is scaled while it trains."""

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(torch.relu(self.bn(self.conv(x))), 0.3, self.training)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16])
def test_what_is_drawn_and_scaled_goes_on_too(half: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.training.precision.half_type", lambda device: half)
    schedule, more = replace(SCHEDULE, mixed=True), {"checkpoint": tmp_path / "c.pt", "fingerprint": "a"}
    torch.manual_seed(0)
    whole = fitted(Dropping(), schedule)
    stop = StopToken()
    torch.manual_seed(0)
    with pytest.raises(Cancelled):
        run(training(Dropping(), DATA, schedule, stage="train", stop=stop, **more), stop_at=2, stop=stop)
    kept = torch.load(tmp_path / "c.pt", weights_only=True)
    assert (kept["half"].get("scale", 0) > 1) == (half == torch.float16)
    torch.manual_seed(99)
    result = fitted(Dropping(), schedule, **more)
    assert result.losses == whole.losses and all(torch.equal(result.best[name], whole.best[name]) for name in whole.best)
    assert {value.dtype for name, value in result.best.items() if "num_" not in name} == {torch.float32}
    assert result.value > 0.8


def test_gradients_that_overflow_in_16_bits_cost_a_step_and_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    half, model = Half("float16", "cpu"), net()
    optimizer = SGD(parameter_groups(model, SCHEDULE.weight_decay), 0.1, 0.9)
    before = {name: value.clone() for name, value in model.named_parameters()}
    half.step(model(torch.ones(4, 3, 8, 8)).sum() * torch.inf, optimizer, model.parameters(), None)
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
    scale = half.state_dict()["scale"]
    optimizer.zero_grad()
    half.step(model(torch.ones(4, 3, 8, 8)).square().sum(), optimizer, model.parameters(), 0.5)
    assert not torch.equal(before["fc.weight"], model.fc.weight) and scale < torch.amp.GradScaler("cpu").state_dict()["scale"]
    # The norm is bounded as it is without the scale.
    assert torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm() == pytest.approx(0.5, rel=1e-3)


class Plain(nn.Module):
    """Without statistics of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


class OnePixel(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8)


def test_one_image_that_is_left_over_waits_for_another_epoch() -> None:
    """Alone it has no statistics to normalize it by."""
    odd = replace(DATA, train=a_split(49, 1))
    result, events = run(training(OnePixel(), odd, SCHEDULE, stage="train", stop=StopToken()))
    assert len(result.losses) == 4 and max(e.done for e in events if isinstance(e, Step)) == 4 * 3
    assert max(e.done for e in events if isinstance(e, Progress)) == 48


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    more = {"checkpoint": tmp_path / "c.pt", "fingerprint": "a"}
    first = fitted(net(), SCHEDULE, **more)
    again, events = run(training(net(), DATA, SCHEDULE, stage="train", stop=StopToken(), **more))
    assert not [e for e in events if isinstance(e, EpochFinished)]
    assert again.losses == first.losses and torch.equal(again.best["fc.weight"], first.best["fc.weight"])


def test_a_checkpoint_of_something_else_is_started_over(tmp_path: Path) -> None:
    fitted(net(), ItemSchedule(epochs=2, batch=16, lr=0.1), checkpoint=tmp_path / "c.pt", fingerprint="a")
    _, events = run(training(net(), DATA, SCHEDULE, stage="train", stop=StopToken(), checkpoint=tmp_path / "c.pt", fingerprint="b"))
    assert [e.epoch for e in events if isinstance(e, EpochFinished)] == [1, 2, 3, 4]
    assert torch.load(tmp_path / "c.pt", weights_only=True)["fingerprint"] == "b"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(EngineError, match=r"c\.pt cannot be continued.*remove it") as caught:
        fitted(net(), SCHEDULE, checkpoint=tmp_path / "c.pt", fingerprint="a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"fingerprint": "a"}, [1, 2], {"fingerprint": "a", "model": {}, "optimizer": {}}])
def test_a_checkpoint_that_lacks_parts_is_named(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(EngineError, match=r"c\.pt cannot be continued.*remove it"):
        fitted(net(), SCHEDULE, checkpoint=tmp_path / "c.pt", fingerprint="a")


def test_a_stop_is_heard_within_a_batch(tmp_path: Path) -> None:
    stop = StopToken()
    steps = training(net(), DATA, SCHEDULE, stage="train", stop=stop, checkpoint=tmp_path / "c.pt")
    while not isinstance(next(steps), Progress):
        pass
    stop.set()
    with pytest.raises(Cancelled):
        next(steps)
    kept = torch.load(tmp_path / "c.pt", weights_only=True)
    assert (kept["losses"], kept["position"]["epoch"], kept["position"]["steps"]) == ([], 1, 1)


def test_a_stop_before_the_first_step_leaves_nothing(tmp_path: Path) -> None:
    stop = StopToken()
    stop.set()
    with pytest.raises(Cancelled):
        run(training(net(), DATA, SCHEDULE, stage="train", stop=stop, checkpoint=tmp_path / "c.pt"))
    assert not (tmp_path / "c.pt").exists()


# Within an epoch: four steps each.


def in_turn(checks: int) -> StopToken:
    """A token that stops at the ``checks``-th look at it: one for each step and one for the validation of each epoch."""

    class Counted(StopToken):
        looks = 0

        def check(self) -> None:
            self.looks += 1
            if self.looks == checks:
                self.set()
            super().check()

    return Counted()


@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("checks", "place"),
    [
        (2, "epoch 1, step 2"),
        (5, "the validation of epoch 1"),
        (7, "epoch 2, step 2"),
        (9, "epoch 2, step 4"),
        (20, "the validation of epoch 4"),
    ],
)
def test_a_training_stopped_within_an_epoch_goes_on_at_its_step(
    checks: int, place: str, half: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.training.precision.half_type", lambda device: half)
    schedule, more = replace(SCHEDULE, mixed=True), {"stage": "train", "checkpoint": tmp_path / "c.pt", "fingerprint": "a"}

    def model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Dropping()

    straight, seen = run(training(model(0), DATA, schedule, stage="train", stop=StopToken()))
    with pytest.raises(Cancelled):
        run(training(model(0), DATA, schedule, stop=in_turn(checks), **more))
    computed: list[int] = []
    last = model(99)
    last.register_forward_pre_hook(lambda module, args: computed.append(len(args[0])) if module.training else None)
    resumed, events = run(training(last, DATA, schedule, stop=StopToken(), **more))
    assert events[0] == Notice(f"continuing at {place}")
    assert len(computed) == 16 - (checks - 1 - (checks - 1) // 5)
    assert (resumed.losses, resumed.values, resumed.epoch) == (straight.losses, straight.values, straight.epoch)
    assert all(torch.equal(resumed.best[name], straight.best[name]) for name in straight.best)
    epochs = [event for event in seen if isinstance(event, EpochFinished)]
    assert [event for event in events if isinstance(event, EpochFinished)] == epochs[(checks - 1) // 5 :]


def test_a_training_that_is_stopped_again_and_again_ends_where_it_would_have(tmp_path: Path) -> None:
    more: Any = {"stage": "train", "checkpoint": tmp_path / "c.pt", "fingerprint": "a"}
    torch.manual_seed(0)
    straight = fitted(Dropping(), SCHEDULE)
    torch.manual_seed(0)
    model: nn.Module = Dropping()
    stops = 0
    while True:
        try:
            result, _ = run(training(model, DATA, SCHEDULE, stop=in_turn(7), **more))
            break
        except Cancelled:
            stops, model = stops + 1, Dropping()
    assert stops > 2 and result.losses == straight.losses
    assert all(torch.equal(result.best[name], straight.best[name]) for name in straight.best)


def test_a_training_that_is_killed_goes_on_from_the_last_half_minute(tmp_path: Path, slow: list[float]) -> None:
    """0.1 s a step: it is saved after 30 s and no sooner."""
    schedule = ItemSchedule(epochs=2, batch=1, lr=0.01)
    data = replace(DATA, train=a_split(400, 1))
    more: Any = {"stage": "train", "checkpoint": tmp_path / "c.pt", "fingerprint": "a"}
    torch.manual_seed(0)
    steps = training(Plain(), data, schedule, stop=StopToken(), **more)
    for event in steps:
        if isinstance(event, Progress):
            assert (tmp_path / "c.pt").exists() == (event.done >= 300)
            if event.done >= 310:
                break
    steps.close()
    torch.manual_seed(0)
    straight, _ = run(training(Plain(), data, schedule, stage="train", stop=StopToken()))
    resumed, events = run(training(Plain(), data, schedule, stop=StopToken(), **more))
    assert events[0] == Notice("continuing at epoch 1, step 301")
    assert resumed.losses == straight.losses and all(torch.equal(resumed.best[name], straight.best[name]) for name in straight.best)


def test_a_slow_disk_is_written_to_more_rarely() -> None:
    now = [0.0]
    due = Due(lambda: now[0])
    found = []
    for second in range(400):
        now[0] = max(now[0], float(second))
        if due():
            found.append(second)
            began, now[0] = now[0], now[0] + 5
            due.saved(began)
    assert found == [30, 135, 240, 345]


def test_a_checkpoint_of_whole_epochs_alone_goes_on(tmp_path: Path) -> None:
    """As they were before the place within an epoch was saved, and as fine-tuning of decoders named its parts."""
    whole, stop = fitted(net(), SCHEDULE), StopToken()
    more: Any = {"stage": "train", "checkpoint": tmp_path / "c.pt", "fingerprint": "a"}
    with pytest.raises(Cancelled):
        run(training(net(), DATA, SCHEDULE, stop=stop, **more), stop_at=2, stop=stop)
    kept = torch.load(tmp_path / "c.pt", weights_only=True)
    old = {name: value for name, value in kept.items() if name not in ("position", "start")}
    of_text = {**{n: v for n, v in old.items() if n not in ("model", "half", "scores")}, "student": old["model"], "start": -0.5}
    for state in (old, of_text):
        torch.save(state, tmp_path / "c.pt")
        result, events = run(training(net(), DATA, SCHEDULE, stop=StopToken(), **more))
        assert events[0] == Notice("continuing after epoch 2 of 4") and result.losses == whole.losses
    assert result.start == -0.5


# Steps, and enough of them.


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that moves by a tenth of a second at every look at the token."""
    now = [0.0]
    real_check = StopToken.check

    def check(token: StopToken) -> None:
        now[0] += 0.1
        real_check(token)

    monkeypatch.setattr(StopToken, "check", check)
    monkeypatch.setattr(StopToken, "clock", lambda token: now[0])
    return now


def by_image(x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return logits.sum() * 0 + len(x)


def test_steps_come_four_times_a_second_and_at_the_end_of_an_epoch(slow: list[float]) -> None:
    """Four batches an epoch, 0.1 s each and 0.1 s for the judge: 16, 16, 16 and 12 images."""
    times: list[float] = []
    steps: list[Step] = []
    for event in training(net(), DATA, ItemSchedule(epochs=2, batch=16, lr=0.1), stage="qat", stop=StopToken(), loss=by_image):
        if isinstance(event, Step):
            steps.append(event)
            times.append(round(slow[0], 1))
    assert [(s.epoch, s.done) for s in steps] == [(1, 1), (1, 4), (2, 6), (2, 8)]
    assert times == [0.1, 0.4, 0.7, 0.9]
    assert {(s.stage, s.epochs, s.total) for s in steps} == {("qat", 2, 8)}
    assert [s.loss for s in steps] == pytest.approx([16, (16 * 16 * 2 + 12 * 12) / 44, 16, (16 * 16 + 12 * 12) / 28])
    assert [s.lr for s in steps] == [ItemSchedule(epochs=2, batch=16, lr=0.1).rate(s.done - 1, 8) for s in steps]


def test_an_epochs_last_step_is_told_even_if_one_was_told_just_before() -> None:
    """All of this takes a few milliseconds."""
    _, events = run(training(net(), DATA, SCHEDULE, stage="train", stop=StopToken()))
    steps = [event for event in events if isinstance(event, Step)]
    assert {step.done for step in steps} >= {4, 8, 12, 16} and len(steps) < 16
    assert all(type(step.loss) is float for step in steps)


def test_the_epochs_loss_is_what_adding_up_doubles_gives() -> None:
    given: list[tuple[float, int]] = []

    def loss(x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(logits, labels)
        given.append((value.item(), len(x)))
        return value

    result = fitted(net(), SCHEDULE, loss=loss)
    for epoch, found in enumerate(result.losses):
        total = 0.0
        for value, images in given[4 * epoch : 4 * epoch + 4]:
            total += value * images
        assert found == total / 60


def test_after_a_resume_the_steps_go_on_counting(tmp_path: Path) -> None:
    stop, more = StopToken(), {"stage": "train", "checkpoint": tmp_path / "c.pt", "fingerprint": "a"}
    with pytest.raises(Cancelled):
        run(training(net(), DATA, SCHEDULE, stop=stop, **more), stop_at=3, stop=stop)
    _, events = run(training(net(), DATA, SCHEDULE, stop=StopToken(), **more))
    first, *_, last = [event for event in events if isinstance(event, Step)]
    assert (first.epoch, first.done, first.total) == (4, 13, 16) and last.done == 16


def test_a_loss_that_is_not_finite_is_never_saved_nor_judged(tmp_path: Path) -> None:
    """In the second batch of the second epoch, where nothing is told: the first epoch alone is on the disk."""
    seen, judged = [], []

    def loss(x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(1)
        return logits.sum() * (math.nan if len(seen) == 6 else 1)

    def judge() -> Generator[Event, None, Judged]:
        yield Notice("judged")
        judged.append(1)
        return Judged(0.5, (0.5,))

    more: Any = {"checkpoint": tmp_path / "c.pt", "fingerprint": "a"}
    steps = training(net(), DATA, SCHEDULE, stage="qat", stop=StopToken(), loss=loss, judge=judge, **more)
    with pytest.raises(EngineError, match="not finite in epoch 2"):
        run(steps)
    assert len(torch.load(tmp_path / "c.pt", weights_only=True)["losses"]) == len(judged) == 1


def ended(when: Any, model: nn.Module | None = None, **more: Any) -> tuple[Fitted, list[Event]]:
    """Training of which it is enough from the first event on that ``when`` picks."""
    stop, seen = StopToken(), []
    steps = training(model or net(), DATA, SCHEDULE, stage="train", stop=stop, **more)
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            return end.value, seen
        seen.append(event)
        if when(event):
            stop.enough()


@pytest.mark.parametrize(
    ("when", "epochs"),
    [
        (lambda e: isinstance(e, Progress), 1),
        (lambda e: isinstance(e, EpochFinished), 1),
        (lambda e: isinstance(e, EpochFinished) and e.epoch == 2, 2),
        (lambda e: isinstance(e, Step) and e.done == 9, 2),
        (lambda e: isinstance(e, EpochFinished) and e.epoch == 4, 4),
    ],
    ids=["in the first epoch", "after the first", "after the second", "in the third", "after the last"],
)
def test_enough_ends_training_with_the_best_epoch(when: Any, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.training.loop.Every", lambda *_: lambda: True)
    scores = iter([0.4, 0.3, 0.9, 0.8])
    states: list[dict[str, Tensor]] = []

    model = net()

    def judge() -> Generator[Event, None, Judged]:
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        value = next(scores)
        yield Progress("train", 1, 1, "img")
        return Judged(value, (value,))

    result, events = ended(when, judge=judge, model=model)
    best = 3 if epochs == 4 else 1
    assert len(result.losses) == len(result.values) == epochs
    assert (result.epoch, result.value) == (best, {1: 0.4, 3: 0.9}[best])
    assert all(torch.equal(result.best[name], states[best - 1][name]) for name in result.best)
    asked = [e for e in events if isinstance(e, Step) and e.epoch > epochs]
    assert len(asked) <= 1
    told = [e.text for e in events if isinstance(e, Notice)]
    assert told == ([f"training was ended after epoch {epochs} of 4"] if epochs < 4 else [])


def test_what_was_ended_early_can_be_continued(tmp_path: Path) -> None:
    more = {"checkpoint": tmp_path / "c.pt", "fingerprint": "a"}
    ended(lambda e: isinstance(e, EpochFinished) and e.epoch == 2, **more)
    result, events = run(training(net(), DATA, SCHEDULE, stage="train", stop=StopToken(), **more))
    assert [e.epoch for e in events if isinstance(e, EpochFinished)] == [3, 4]
    assert result.losses == fitted(net(), SCHEDULE).losses


def test_enough_that_was_said_before_a_resume_keeps_what_there_is(tmp_path: Path) -> None:
    more = {"checkpoint": tmp_path / "c.pt", "fingerprint": "a"}
    first, _ = ended(lambda e: isinstance(e, EpochFinished) and e.epoch == 2, **more)
    stop = StopToken()
    stop.enough()
    again, events = run(training(net(), DATA, SCHEDULE, stage="train", stop=stop, **more))
    assert not [e for e in events if isinstance(e, EpochFinished | Step)]
    assert (again.losses, again.epoch) == (first.losses, first.epoch)


def test_accuracy_is_the_share_of_right_answers() -> None:
    answers = iter(range(33))

    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            numbers = torch.tensor([next(answers) for _ in range(len(x))])
            return nn.functional.one_hot(torch.where(numbers < 11, numbers % 3, (numbers + 1) % 3), 3).float()

    assert measured(Half(), Classification(DATA), "test", 10, StopToken()) == pytest.approx(11 / 33)


def test_a_loaders_own_batches_are_the_steps_that_the_rate_follows() -> None:
    """Whatever batch the schedule asks for: seven batches of 8, 8, 8, 8, 8, 8 and 4."""
    images = torch.randn(52, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    loader = [(some, torch.arange(len(some)) % 3) for some in images.split(8)]
    task = Task.of(loader, loader, loader, metric=lambda outputs, targets: 0.5, loss=nn.functional.cross_entropy)
    schedule, where = ItemSchedule(epochs=2, batch=32, lr=0.1), TrainingContext(StopToken())
    model = net()
    _, events = run(fit(TaskModel(model, task), TaskBatches(task, schedule), validation(model, task, schedule, where), schedule, where))
    steps = [event for event in events if isinstance(event, Step)]
    assert (steps[-1].done, steps[-1].total) == (14, 14) and steps[-1].lr == schedule.rate(13, 14)
    assert [e.metric for e in events if isinstance(e, EpochFinished)] == [task.metric.name] * 2


# Baselines.

ENTRY = ModelEntry("net", "for tests", f"{__name__}:Net", (3, 8, 8))


def test_a_baseline_is_written_with_its_record(tmp_path: Path) -> None:
    out = tmp_path / "new" / "net.safetensors"
    done, events = run(train_baseline(ENTRY, DATA, out, SCHEDULE, "qtui train net", StopToken()))
    record = json.loads((tmp_path / "new" / "net.json").read_text())
    assert (record["command"], record["seed"], record["model"], record["test_images"]) == ("qtui train net", 0, "net", 33)
    assert sorted(path.name for path in out.parent.iterdir()) == ["net.json", "net.safetensors"]
    model = Net()
    model.load_state_dict(load_file(out))
    right = measured(model, Classification(DATA), "test", 33, StopToken())
    assert done.test == right and record["test_accuracy"] == round(right, 4) and right > 0.9
    best = max((e for e in events if isinstance(e, EpochFinished)), key=lambda e: (e.value, e.epoch))
    assert record["best_epoch"] == best.epoch and record["validation_accuracy"] == round(best.value, 4)


def test_the_same_seed_gives_the_same_baseline(tmp_path: Path) -> None:
    for name in "ab":
        run(train_baseline(ENTRY, DATA, tmp_path / f"{name}.safetensors", SCHEDULE, "", StopToken()))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_stopped_baseline_leaves_its_checkpoint_alone_and_goes_on(tmp_path: Path) -> None:
    stop = StopToken()
    with pytest.raises(Cancelled):
        run(train_baseline(ENTRY, DATA, tmp_path / "net.safetensors", SCHEDULE, "", stop), stop_at=1, stop=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["net.checkpoint.pt"]
    _, events = run(train_baseline(ENTRY, DATA, tmp_path / "net.safetensors", SCHEDULE, "", StopToken()))
    assert [e.epoch for e in events if isinstance(e, EpochFinished)] == [2, 3, 4]
    run(train_baseline(ENTRY, DATA, tmp_path / "whole.safetensors", SCHEDULE, "", StopToken()))
    assert (tmp_path / "net.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.parametrize(("epoch", "says"), [(0, "before an epoch was finished"), (1, "the same command goes on")])
def test_a_stopped_baseline_says_how_to_go_on(tmp_path: Path, epoch: int, says: str) -> None:
    stop, told = StopToken(), []

    def heard() -> None:
        for event in train_baseline(ENTRY, DATA, tmp_path / "net.safetensors", SCHEDULE, "", stop):
            told[:] = [event]
            if isinstance(event, EpochFinished) or not epoch:
                stop.set()

    with pytest.raises(Cancelled):
        heard()
    assert isinstance(told[0], Notice) and says in told[0].text


def test_each_packaged_data_set_has_its_schedule() -> None:
    assert schedule_for("digits") is DEFAULTS["digits"] and schedule_for("cifar10") is DEFAULTS["cifar10"]
    assert schedule_for("mine").epochs > 0
