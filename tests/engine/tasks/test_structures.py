"""Models of several inputs and outputs, of any rank and type, from a person's own task to the stored model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import engine
from engine.errors import EngineError
from engine.numerics.sqnr import sqnr_db

ITEMS, BATCHES = 16, 6


def _trunk(channels: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())


class TwoImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = _trunk(), nn.Linear(16, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.cat([self.trunk(left).mean((2, 3)), self.trunk(right).mean((2, 3))], 1))


class ImageAndTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.table, self.head = _trunk(), nn.Linear(5, 8), nn.Linear(16, 4)

    def forward(self, image: Tensor, row: Tensor, scale: float = 1.0) -> Tensor:
        return self.head(torch.cat([self.trunk(image).mean((2, 3)), torch.relu(self.table(row)) * scale], 1))


class Nested(nn.Module):
    """One argument that is a dict with a tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = _trunk(), nn.Linear(12, 4)

    def forward(self, given: dict[str, Any]) -> Tensor:
        first, second = given["rows"]
        return self.head(torch.cat([self.trunk(given["image"]).mean((2, 3)), first, second], 1))


class Tokens(nn.Module):
    """Token ids and a boolean mask, by name; a dict of two tensors, a number and None."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv, self.head = nn.Embedding(40, 16), nn.Conv1d(16, 24, 3, padding=1), nn.Linear(24, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, head_mask: Tensor | None = None) -> dict[str, Any]:
        x = torch.relu(self.conv(self.embed(input_ids).transpose(1, 2)))
        kept = attention_mask[:, None].to(x.dtype)
        pooled = (x * kept).sum(2) / kept.sum(2).clamp(min=1)
        return {"logits": self.head(pooled), "pooled": pooled, "width": 24, "loss": None}


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.label, self.box = _trunk(), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.trunk(image).mean((2, 3))
        return self.label(x), [self.box(x), x]


@dataclass
class Answer:
    logits: Tensor
    features: Tensor | None = None
    loss: Tensor | None = None


class WithClass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = _trunk(), nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Answer:
        x = self.trunk(image).mean((2, 3))
        return Answer(self.head(x), x)


class Regression(nn.Module):
    def __init__(self, outputs: int | None) -> None:
        super().__init__()
        self.layers, self.flat = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, outputs or 1)), outputs is None

    def forward(self, row: Tensor) -> Tensor:
        return self.layers(row).squeeze(1) if self.flat else self.layers(row)


def _segmentation() -> nn.Module:
    return nn.Sequential(*_trunk(), nn.Conv2d(8, 3, 1))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.out = nn.Conv2d(3, 8, 3, 2, 1), nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.out(self.up(torch.relu(self.down(image))))


def _waves() -> nn.Module:
    layers = nn.Conv1d(2, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 3, padding=1), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4))


def _gray() -> nn.Module:
    return nn.Sequential(*_trunk(1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def _images(count: int, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, 12, 12)


def _mask(count: int) -> Tensor:
    return torch.arange(10)[None] < torch.randint(3, 11, (count, 1))


@dataclass(frozen=True)
class Case:
    """``first`` gives of what the model returns the tensor that is judged: by the part of equal answers, or by the squared error."""

    net: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    first: Callable[[Any], Tensor] = lambda out: out
    answers: bool = True


CASES = {
    "two images": Case(TwoImages, lambda n: (_images(n), _images(n))),
    "an image and a row of a table": Case(ImageAndTable, lambda n: (_images(n), torch.randn(n, 5))),
    "a dict with a tuple in it": Case(Nested, lambda n: ({"image": _images(n), "rows": (torch.randn(n, 2), torch.randn(n, 2))},)),
    "token ids and a mask by name": Case(
        Tokens, lambda n: {"input_ids": torch.randint(40, (n, 10)), "attention_mask": _mask(n)}, lambda out: out["logits"]
    ),
    "a tuple with a list in it": Case(Pair, _images, lambda out: out[0]),
    "a dataclass": Case(WithClass, _images, lambda out: out.logits),
    "one number for each row": Case(lambda: Regression(None), lambda n: torch.randn(n, 6), answers=False),
    "four numbers for each row": Case(lambda: Regression(4), lambda n: torch.randn(n, 6), answers=False),
    "masks": Case(_segmentation, _images),
    "images again": Case(Autoencoder, _images, answers=False),
    "waves": Case(_waves, lambda n: torch.randn(n, 2, 24)),
    "gray images": Case(_gray, lambda n: _images(n, 1)),
}


def _call(model: Callable[..., Any], inputs: Any) -> Any:
    with torch.no_grad():
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of a result, whatever holds them, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Answer):
        value = vars(value)
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, tuple | list) else []
    return [tensor for part in parts for tensor in _tensors(part)]


@dataclass(frozen=True)
class Done:
    """A finished run: its report, the fp32 model, the model that was measured as it was in memory, and the test batches."""

    case: Case
    report: dict[str, Any]
    fp32: nn.Module
    measured: Any
    test: list[tuple[Any, Tensor]]
    folder: Path


def _quantized(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Done:
    from engine.export import timing as export_timing
    from engine.lowering.graph import layer_timing
    from engine.runs import job
    from engine.tasks import timing

    monkeypatch.setattr(layer_timing, "SECONDS", 0.1)
    monkeypatch.setattr(timing, "latencies", partial(timing.latencies, seconds=0.02))
    monkeypatch.setattr(export_timing, "times", partial(export_timing.times, seconds=0.02))
    kept, export = [], job.export

    def exported(run: Any, subject: Any, chosen: Any, *rest: Any) -> Any:
        kept.append(chosen.quantized.model)
        return (yield from export(run, subject, chosen, *rest))

    monkeypatch.setattr(job, "export", exported)
    torch.manual_seed(3)
    net = case.net().eval()
    splits = []
    for _ in range(3):
        batches = []
        for _ in range(BATCHES):
            inputs = case.inputs(ITEMS)
            wanted = case.first(_call(net, inputs))
            batches.append((inputs, wanted.argmax(1) if case.answers else wanted + 0.1 * torch.randn_like(wanted)))
        splits.append(batches)

    def agreement(outputs: Any, targets: Tensor) -> Tensor:
        return (case.first(outputs).argmax(1) == targets).float().mean()

    def mse(outputs: Any, targets: Tensor) -> Tensor:
        return F.mse_loss(case.first(outputs), targets)

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        return (F.cross_entropy if case.answers else F.mse_loss)(case.first(outputs), targets)

    task = engine.Task.of(*splits, metric=agreement if case.answers else mse, loss=loss)
    engine.quantize(model=net, task=task, out=folder, preset="w8a8", threshold="sqnr:1", **{"qat": {"mode": "never"}, **fields})
    return Done(case, json.loads((folder / "report.json").read_text()), net, kept[-1], splits[2], folder)


def _metric(done: Done, model: Callable[..., Any]) -> float:
    """The metric over the test split, by hand."""
    right = error = count = 0.0
    for inputs, targets in done.test:
        found = done.case.first(_call(model, inputs))
        if done.case.answers:
            right += float((found.argmax(1) == targets).sum())
        else:
            error += float((found.double() - targets.double()).square().sum())
        count += targets.numel()
    return right / count if done.case.answers else error / count


@pytest.mark.parametrize("name", CASES)
def test_a_model_of_any_inputs_and_outputs_is_quantized_stored_and_loaded(name, own_cache, tmp_path, monkeypatch):
    done = _quantized(CASES[name], tmp_path, monkeypatch)
    loaded = engine.load_quantized(tmp_path)
    assert loaded.placement
    reported = done.report["metrics"]
    (metric,) = reported["ptq"]
    assert reported["fp32"][metric]["value"] == pytest.approx(_metric(done, done.fp32), abs=1e-4)
    assert reported["ptq"][metric]["value"] == pytest.approx(_metric(done, loaded), rel=1e-5)
    signal = noise = 0.0
    for inputs, _ in done.test:
        exact, found, again = _tensors(_call(done.fp32, inputs)), _call(done.measured, inputs), _call(loaded, inputs)
        assert len(_tensors(found)) == len(exact)
        assert all(torch.equal(a, b) for a, b in zip(_tensors(found), _tensors(again), strict=True))
        for wanted, got in zip(exact, _tensors(found), strict=True):
            signal += float(wanted.double().square().sum())
            noise += float((wanted.double() - got.double()).square().sum())
    assert sqnr_db(signal, noise) > 20
    assert done.report["ptq"]["error"]["sqnr_db"] == pytest.approx(sqnr_db(signal, noise), abs=0.01)


@pytest.mark.parametrize("name", ["token ids and a mask by name", "a dataclass"])
def test_an_epoch_of_training_takes_and_gives_the_same_structures(name, own_cache, tmp_path, monkeypatch):
    done = _quantized(CASES[name], tmp_path, monkeypatch, qat={"mode": "always", "epochs": 1, "batch": ITEMS})
    training = done.report["qat"]
    assert len(training["loss"]) == 1
    assert math.isfinite(training["loss"][0])
    loaded = engine.load_quantized(tmp_path)
    chosen = done.report["verdict"]["chosen"]
    assert done.report["metrics"][chosen]["agreement"]["value"] == pytest.approx(_metric(done, loaded), rel=1e-5)
    for inputs, _ in done.test:
        pairs = zip(_tensors(_call(done.measured, inputs)), _tensors(_call(loaded, inputs)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["two images", "token ids and a mask by name", "a tuple with a list in it"])
def test_an_onnx_file_takes_inputs_by_name_in_any_number(name, own_cache, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    done = _quantized(CASES[name], tmp_path, monkeypatch, export=["onnx", "pt2"])
    entries = {entry["format"]: entry for entry in done.report["exports"]}
    assert all(entry["verified"] for entry in entries.values()), entries
    assert entries["pt2"]["parity"]["max_abs"] < 1e-4
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    expected = {
        "two images": (["left", "right"], ["output"]), "a tuple with a list in it": (["image"], ["output_0", "output_1_0", "output_1_1"]),
        "token ids and a mask by name": (["input_ids", "attention_mask"], ["logits", "pooled"]),
    }  # fmt: skip
    assert (names, [x.name for x in session.get_outputs()]) == expected[name]
    for count in (1, 5):
        torch.manual_seed(count)
        inputs = done.case.inputs(count)
        given = list(inputs.values()) if isinstance(inputs, dict) else list(inputs) if isinstance(inputs, tuple) else [inputs]
        found = session.run(None, {key: value.numpy() for key, value in zip(names, given, strict=True)})
        for wanted, got in zip(_tensors(_call(done.measured, inputs)), found, strict=True):
            difference = wanted.double() - torch.from_numpy(got).double()
            assert sqnr_db(float(wanted.double().square().sum()), float(difference.square().sum())) > 25


def test_an_openvino_file_gives_all_outputs(own_cache, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    done = _quantized(CASES["token ids and a mask by name"], tmp_path, monkeypatch, export=["openvino"])
    entry = done.report["exports"][-1]
    assert entry["verified"], entry
    assert entry["parity"]["sqnr_db"] > 25


def test_a_loaded_model_returns_what_the_model_returned(own_cache, tmp_path, monkeypatch):
    done = _quantized(CASES["token ids and a mask by name"], tmp_path, monkeypatch)
    loaded = engine.load_quantized(tmp_path)
    inputs, _ = done.test[0]
    by_name = loaded(**inputs)
    assert list(by_name) == ["logits", "pooled", "width", "loss"]
    assert (by_name["width"], by_name["loss"]) == (24, None)
    # By position too, as the model takes them, and with what was left out as None.
    for again in (loaded(*inputs.values()), loaded(inputs["input_ids"], attention_mask=inputs["attention_mask"], head_mask=None)):
        assert torch.equal(again["logits"], by_name["logits"])
    for wrong, said in [
        ({"input_ids": inputs["input_ids"]}, "attention_mask is missing"),
        ({**inputs, "head_mask": torch.ones(3)}, "traced without head_mask"),
        ({**inputs, "input_ids": inputs["input_ids"].float()}, "the model takes input_ids: int64"),
        ({**inputs, "attention_mask": None}, "a tensor for attention_mask"),
    ]:
        with pytest.raises(EngineError, match=said):
            loaded(**wrong)


def test_fields_of_a_dataclass_come_back_by_name_and_as_attributes(own_cache, tmp_path, monkeypatch):
    done = _quantized(CASES["a dataclass"], tmp_path, monkeypatch)
    found = engine.load_quantized(tmp_path)(done.test[0][0])
    assert found.logits is found["logits"] is found[0]
    assert found.loss is None
    assert len(found.to_tuple()) == 2
