"""A person's own task: what it may be made of, what is said where it does not fit, and that it runs by all three doors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import driving
import pytest
import torch
from sklearn.metrics import mean_absolute_error
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import engine
from engine.errors import EngineError, UsageError
from engine.tasks.metrics import MetricValue

LOADER = [(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)), torch.arange(8) % 4) for i in range(20)]


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def net(outputs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs)).eval()


def quantized(out: Path, task: engine.Task, model: nn.Module | None = None, **fields: Any) -> Any:
    with driving.untimed():
        return engine.quantize(model=model or net(), task=task, out=out, **{"preset": "w8a8", **fields}).data


def test_a_model_in_hand_and_a_loader_run_without_a_factory(own_cache: Path, tmp_path: Path) -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    task = engine.Task.of(LOADER[:10], LOADER[10:14], LOADER[14:], metric=accuracy, unit="%", name="mine", item="picture")
    data = quantized(tmp_path / "run", task, model)
    assert data["task"] == "mine" and data["lowering"] == "graph" and data["baseline"]["metric"] == "accuracy"
    assert data["data"]["train"] == 80 and data["data"]["validation"] == 32 and data["data"]["test"] == 48
    loaded = engine.load_quantized(tmp_path / "run")
    right = sum(int((loaded(x.contiguous(memory_format=torch.channels_last)).argmax(1) == y).sum()) for x, y in LOADER[14:])
    assert data["ptq"]["value"] == pytest.approx(right / 48, abs=1e-6)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_metric_of_numbers_is_the_one_that_scikit_learn_computes(own_cache: Path, tmp_path: Path) -> None:
    loader = [(x, x.mean((1, 2, 3))) for x, _ in LOADER]

    def mae(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return float((outputs - targets).abs().mean())

    model = nn.Sequential(net(1), nn.Flatten(0)).eval()
    task = engine.Task.of(loader[:10], loader[10:14], loader[14:], metric=mae)
    data = quantized(tmp_path / "run", task, model, threshold="sqnr:10")
    loaded = engine.load_quantized(tmp_path / "run")
    got = torch.cat([loaded(x.contiguous(memory_format=torch.channels_last)) for x, _ in loader[14:]])
    wanted = torch.cat([y for _, y in loader[14:]])
    assert data["ptq"]["value"] == pytest.approx(mean_absolute_error(wanted.numpy(), got.numpy()), rel=1e-5)
    assert "mae" in data["verdict"]["text"] and "less is taken to be better" in data["data"]["notes"][0]


def test_without_a_loss_training_distils_from_fp32(own_cache: Path, tmp_path: Path) -> None:
    task = engine.Task.of(LOADER[:10], LOADER[10:14], LOADER[14:], metric=accuracy)
    data = quantized(tmp_path / "run", task, qat={"mode": "always", "epochs": 2})
    assert data["qat"]["loss"][-1] < data["qat"]["loss"][0]


def test_one_loader_alone_is_split_the_same_way_each_time_and_the_report_says_how(own_cache: Path, tmp_path: Path) -> None:
    shuffled = DataLoader(TensorDataset(torch.arange(200.0)[:, None], torch.arange(200) % 2), batch_size=8, shuffle=True)
    task = engine.Task.of(shuffled, metric=accuracy)
    splits = {
        split: [x for part in task.batches(split, batch=1) for x in part.args[0].flatten().tolist()]
        for split in ("train", "validation", "test")
    }
    assert sorted(x for some in splits.values() for x in some) == list(range(200))
    assert splits == {s: [x for part in task.batches(s, batch=1) for x in part.args[0].flatten().tolist()] for s in splits}  # type: ignore[arg-type]
    assert "split off train" in task.data(8, None)["notes"][0]


def test_inputs_may_be_tuples_and_dicts_and_targets_ride_along() -> None:
    def batches() -> Iterator[Any]:
        for _ in range(3):
            yield {"left": torch.zeros(4, 2), "right": torch.ones(4, 3), "labels": torch.zeros(4, dtype=torch.long)}

    task = engine.Task.of(batches, batches, batches, metric=accuracy)
    part = next(task.batches("train", batch=1))
    assert sorted(part.kwargs) == ["left", "right"] and part.count == 4 and len(part.targets) == 4
    pairs = [((torch.zeros(4, 2), torch.ones(4, 3)), torch.zeros(4))] * 3
    assert [x.shape[1] for x in next(engine.Task.of(pairs, pairs, pairs, metric=accuracy).batches("test", batch=1)).args] == [2, 3]


def test_an_object_with_update_and_compute_is_a_metric_as_it_is() -> None:
    class Mean:
        higher_is_better = False

        def reset(self) -> None:
            self.values: list[float] = []

        def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
            self.values.append(float(outputs.mean()))

        def compute(self) -> torch.Tensor:
            return torch.tensor(self.values).mean()

    task = engine.Task.of(LOADER, LOADER, LOADER, metric=Mean())
    assert not task.metric.higher_is_better and task.metric.name == "Mean"
    evaluator = task.evaluator()
    evaluator.update(torch.full((2, 2), 3.0), None)
    assert evaluator.compute() == {"Mean": MetricValue(3.0)}


def test_a_generator_that_was_made_is_refused_as_it_can_be_read_once() -> None:
    with pytest.raises(UsageError, match="read once"):
        engine.Task.of((batch for batch in LOADER), metric=accuracy)


def _failing() -> Iterator[Any]:
    yield LOADER[0]
    raise ValueError("no such image")


def _leaving() -> Iterator[Any]:
    yield LOADER[0]
    sys.exit(0)


BAD: dict[str, tuple[Any, str]] = {
    "empty": ([], "gives no batch"),
    "exits": (_leaving, r"loader failed \(.*test_own_tasks.py:\d+\): SystemExit: 0"),
    "raises": (_failing, r"loader failed \(.*test_own_tasks.py:\d+\): ValueError: no such image"),
    "other structure": ([LOADER[0], (torch.zeros(8, 3, 8), torch.arange(8))], "batch 2 of train has inputs float32 .* another structure"),
    "targets of another length": ([(torch.zeros(8, 3, 8, 8), torch.arange(7))], "8 inputs and 7 targets"),
    "no tensor": ([("a", "b")], "holds no tensor"),
    "no batch": ([7], "is a int"),
    "no batch dimension": ([(torch.tensor(1.0), torch.tensor(1))], "without a batch dimension"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_loader_that_does_not_fit_is_told_in_one_line_and_nothing_is_written(kind: str, own_cache: Path, tmp_path: Path) -> None:
    loader, message = BAD[kind]
    out = tmp_path / "run"
    with pytest.raises(EngineError, match=message) as error:
        quantized(out, engine.Task.of(loader, LOADER, LOADER, metric=accuracy))
    assert "\n" not in str(error.value) and not out.exists()


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda outputs, targets: {"a": 1}, "metric metric returned dict: it must return one number"),
        (lambda outputs, targets: float("nan"), "is not a number"),
        (lambda outputs, targets: 1 / 0, r"metric metric failed \(.*test_own_tasks.py:\d+\): ZeroDivisionError"),
        (lambda outputs: 1.0, "TypeError"),
        (lambda outputs, targets: torch.ones(3), r"metric metric returned a Tensor of shape \(3,\): it must return one number"),
        (lambda outputs, targets: sys.exit(0), r"metric metric failed \(.*test_own_tasks.py:\d+\): SystemExit"),
    ],
)
def test_a_metric_that_gives_no_number_is_told_in_one_line(metric: Any, message: str, own_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=message):
        quantized(tmp_path / "run", engine.Task.of(LOADER, LOADER, LOADER, metric=metric))
    assert not (tmp_path / "run").exists()


def test_outputs_that_are_no_tensors_or_not_finite_are_told_in_one_line(own_cache: Path, tmp_path: Path) -> None:
    class Words(nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return "a cat"

    class Holes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((1, 2, 3))[:, None] / 0

    task = engine.Task.of(LOADER, LOADER, LOADER, metric=accuracy)
    with pytest.raises(EngineError, match="returns str without a tensor"):
        quantized(tmp_path / "run", task, Words())
    with pytest.raises(EngineError, match="NaN or infinity"):
        quantized(tmp_path / "run", task, Holes())


@pytest.mark.parametrize(
    ("task", "code", "message"),
    [
        ("nowhere.py:make", 2, "task file nowhere.py does not exist"),
        ("{here}/task.py:make", 2, "has no callable 'make'"),
        ("{here}/broken.py:task", 1, "failed: line 3: ValueError: not today"),
        ("{here}/other.py:task", 1, "returned int: return engine.Task.of"),
        ("segmentatoin", 2, "task 'segmentatoin' is not known"),
    ],
)
def test_a_task_file_that_cannot_be_used_is_one_line(task: str, code: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text("def model():\n    return None\n")
    (tmp_path / "broken.py").write_text("def task():\n    if True:\n        raise ValueError('not today')\n")
    (tmp_path / "other.py").write_text("def task():\n    return 7\n")
    command = [sys.executable, "-m", "qtui", "run", f"{tmp_path}/task.py:model", "--task", task.format(here=tmp_path), "--yes"]
    done = subprocess.run(command, capture_output=True, text=True, env=driving.child_environment(), cwd=tmp_path, check=False)
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_file_that_is_written_to_begin_with_runs_as_it_is(own_cache: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qtui"]
    where: Any = {"capture_output": True, "text": True, "env": driving.child_environment(), "cwd": tmp_path, "check": False}
    assert subprocess.run([*command, "new", "task.py"], **where).returncode == 0
    again = subprocess.run([*command, "new", "task.py"], **where)
    assert again.returncode == 2 and "there already" in again.stderr
    run = [*command, "run", "task.py:model", "--task", "task.py:task", "--preset", "w8a8", "--yes", "--out", "run"]
    done = subprocess.run(run, **where)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["ptq"]["value"] > 0.9 and report["data"]["name"] == "digits"
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    assert f"task: {tmp_path}/task.py:task" in recipe


def evaluated(metric: Any, outputs: torch.Tensor, targets: torch.Tensor) -> Any:
    evaluator = engine.Task.of(LOADER, metric=metric).evaluator()
    evaluator.update(outputs, targets)
    return evaluator


def mse(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return float((outputs - targets).square().mean())


def test_an_answer_that_looks_at_nothing_has_the_metric_of_the_most_frequent_class_or_of_the_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    targets = torch.tensor([0, 1, 1, 1, 2, 2, 0, 1, 1, 2])
    assert evaluated(accuracy, torch.randn(10, 3, generator=draw), targets).chance() == pytest.approx(0.5)
    masks = targets.reshape(10, 1, 1).expand(10, 2, 2)
    assert evaluated(accuracy, torch.randn(10, 3, 2, 2, generator=draw), masks).chance() == pytest.approx(0.5)
    numbers = torch.randn(50, 1, generator=draw)
    assert evaluated(mse, torch.randn(50, 1, generator=draw), numbers).chance() == pytest.approx(numbers.var(unbiased=False).item())
    labels = (torch.rand(40, 2, generator=draw) < torch.tensor([0.2, 0.8])).float()

    def exact(outputs: torch.Tensor, wanted: torch.Tensor) -> float:
        return ((outputs > 0) == (wanted > 0)).float().mean().item()

    best = torch.maximum(labels.mean(0), 1 - labels.mean(0)).mean().item()
    assert evaluated(exact, torch.randn(40, 2, generator=draw), labels).chance() == pytest.approx(best)
    assert evaluated(accuracy, torch.randn(10, 3, generator=draw), targets.float()).chance() is None


def test_the_error_of_a_difference_is_that_of_paired_items() -> None:
    draw = torch.Generator().manual_seed(0)
    targets, outputs = torch.randn(400, 1, generator=draw), torch.randn(400, 1, generator=draw)
    moved = outputs + 0.3 * torch.randn(400, 1, generator=draw)
    each = (moved - targets).square() - (outputs - targets).square()
    wanted = each.std().item() / 400**0.5
    assert evaluated(mse, moved, targets).difference_error(evaluated(mse, outputs, targets)) == pytest.approx(wanted, rel=0.2)
    # No item is answered otherwise: what one more could change, as Agresti and Min count it, less what is right by chance.
    classes = torch.arange(32) % 4
    right = torch.nn.functional.one_hot(classes, 4).float()
    assert evaluated(accuracy, right, classes).difference_error(evaluated(accuracy, right, classes)) == pytest.approx(0.75 / 34)
    assert evaluated(accuracy, right[:4], classes[:4]).difference_error(evaluated(accuracy, right[:4], classes[:4])) is None


class RightOnes:
    """An accuracy as torchmetrics has it."""

    def reset(self) -> None:
        self.right = self.count = 0

    def update(self, outputs: torch.Tensor, targets: Any) -> None:
        targets = torch.as_tensor(targets)
        self.right, self.count = self.right + int((outputs.argmax(1) == targets).sum()), self.count + len(targets)

    def compute(self) -> float:
        return self.right / self.count


def test_an_object_and_targets_in_a_list_have_the_interval_of_a_function() -> None:
    draw = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(48, 4, generator=draw), torch.arange(48) % 4
    moved = outputs + 0.5 * torch.randn(48, 4, generator=draw)

    def of(metric: Any, form: torch.Tensor, wanted: Any) -> Any:
        evaluator = engine.Task.of(LOADER, LOADER, LOADER, metric=metric).evaluator()
        for some in (slice(0, 20), slice(20, 48)):
            evaluator.update(form[some], wanted[some])
        return evaluator

    def listed(given: torch.Tensor, wanted: list[int]) -> torch.Tensor:
        return accuracy(given, torch.tensor(wanted))

    (wanted,) = of(accuracy, outputs, targets).compute().values()
    assert wanted.low < wanted.value < wanted.high
    error = of(accuracy, moved, targets).difference_error(of(accuracy, outputs, targets))
    for metric, given in ((RightOnes(), targets), (RightOnes(), targets.tolist()), (listed, targets.tolist())):
        (found,) = of(metric, outputs, given).compute().values()
        assert (found.value, found.low, found.high) == pytest.approx((wanted.value, wanted.low, wanted.high))
        # A chance is known of functions of tensors alone.
        assert of(metric, moved, given).difference_error(of(metric, outputs, given)) == pytest.approx(error, rel=0.2)


def test_a_loss_that_has_no_gradient_is_told(own_cache: Path, tmp_path: Path) -> None:
    task = engine.Task.of(LOADER, LOADER, LOADER, metric=accuracy, loss=lambda outputs, targets: outputs.detach().sum())
    with pytest.raises(EngineError, match="loss of the task own has no gradient"):
        quantized(tmp_path / "run", task, qat={"mode": "always", "epochs": 1})


def test_a_loader_that_gives_other_batches_each_time_is_told(own_cache: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn() -> Iterator[Any]:
        for _ in range(4):
            yield torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) % 4

    for task, told in (
        (engine.Task.of(LOADER, LOADER, drawn, metric=accuracy), "test gives other batches each time"),
        (engine.Task.of(drawn, metric=accuracy), "train gives other batches each time"),
        (engine.Task.of(drawn, LOADER, LOADER, metric=accuracy), ""),
    ):
        notes = quantized(tmp_path / "run", task, qat={"mode": "never"})["data"].get("notes", [])
        assert [told in note for note in notes if "each time" in note] == ([True] if told else [])
        shutil.rmtree(tmp_path / "run")
