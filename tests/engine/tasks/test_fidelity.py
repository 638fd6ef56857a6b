"""A model judged against fp32 alone: the figures against numpy, and runs of networks of many kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import engine
from engine.errors import UsageError
from engine.recipe.recipe import Recipe
from engine.tasks.fidelity import Distances

NETS = """
import torch
from torch import nn
from torch.nn import functional as F

def seeded(make):
    def factory():
        torch.manual_seed(0)
        return make().eval()
    return factory

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.facts = nn.Conv2d(4, 16, 3, padding=1), nn.Linear(6, 16)
        self.boxes, self.scores = nn.Linear(16, 4), nn.Linear(16, 7)
    def forward(self, image, facts):
        x = F.relu(self.image(image)).mean((2, 3)) + F.relu(self.facts(facts))
        return {"boxes": 300 * self.boxes(x), "scores": (self.scores(x), x)}

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lstm, self.out = nn.Conv2d(1, 16, 3, padding=1), nn.LSTM(128, 16, batch_first=True), nn.Linear(16, 11)
    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2).permute(0, 3, 1, 2).flatten(2)
        return self.out(self.lstm(x)[0])

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.inner, self.out = nn.Embedding(50, 32), nn.Linear(32, 64), nn.Linear(64, 5)
    def forward(self, ids):
        return self.out(F.relu(self.inner(self.embedding(ids)))).mean(1)

def signal(channels, conv, norm, pool):
    first = conv(channels, 16, 3, padding=1), norm(16), nn.ReLU()
    return nn.Sequential(*first, conv(16, 16, 3, 2, 1), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(16, 6))

two, recurrent, tokens = seeded(Two), seeded(Recurrent), seeded(Tokens)
one_d = seeded(lambda: signal(2, nn.Conv1d, nn.BatchNorm1d, nn.AdaptiveAvgPool1d))
three_d = seeded(lambda: signal(1, nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d))
twelve = seeded(lambda: nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 1, 1)))
colour = seeded(lambda: signal(3, nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d))
grey = seeded(lambda: signal(1, nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d))
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path / "nets.py"


def run(nets: Path, name: str, data: str | Path, **fields: Any) -> dict[str, Any]:
    part = {"name": str(data), **fields.pop("data", {})}
    asked = {"threshold": "sqnr:15", "qat": {"mode": "never"}, **fields}
    recipe = Recipe.make(model=f"{nets}:{name}", task="fidelity", data=part, **asked)
    return engine.quantize(recipe, nets.parent / "run").data


def test_figures_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    exact = [rng.normal(size=(20, 7)), rng.normal(size=(20, 3, 2)) * 9]
    found = [x + rng.normal(size=x.shape) * 0.1 for x in exact]
    distances = Distances()
    for begin in range(0, 20, 8):
        raw, wanted = ({"a": torch.tensor(a[begin : begin + 8]), "b": [torch.tensor(b[begin : begin + 8])]} for a, b in (found, exact))
        distances.update(raw, wanted)
    values = distances.compute()
    signal, noise = (sum(float((x**2).sum()) for x in xs) for xs in (exact, [a - b for a, b in zip(found, exact, strict=True)]))
    assert values["SQNR"].value == pytest.approx(10 * np.log10(signal / noise), abs=1e-9)
    assert values["SQNR"].low is not None and values["SQNR"].low < values["SQNR"].value < (values["SQNR"].high or 0)
    assert values["largest error"].value == pytest.approx(max(float(abs(a - b).max()) for a, b in zip(found, exact, strict=True)))
    assert values["agreement"].value == pytest.approx(float((found[0].argmax(1) == exact[0].argmax(1)).mean()))
    for name, a, b in (("a", found[0], exact[0]), ("b.0", found[1], exact[1])):
        assert values[f"SQNR of {name}"].value == pytest.approx(10 * np.log10((b**2).sum() / ((a - b) ** 2).sum()), abs=1e-9)


def test_outputs_that_are_fp32s_own_are_exact() -> None:
    distances = Distances()
    x = torch.randn(9, 4)
    distances.update(x, x)
    assert distances.compute()["SQNR"].value == float("inf") and distances.compute()["largest error"].value == 0


@pytest.mark.parametrize(
    ("name", "data", "on_integers"),
    [
        ("two", "random:4x10x12,6", 4),
        ("recurrent", "random:1x16x20", 2),
        ("tokens", "random:int:9:50", 2),
        ("one_d", "random:2x60", 3),
        ("three_d", "random:1x4x6x6", 3),
        ("twelve", "random:12x8x8", 3),
    ],
)
def test_networks_of_any_rank_inputs_and_outputs_are_quantized_judged_and_exported(
    nets: Path, name: str, data: str, on_integers: int
) -> None:
    pytest.importorskip("onnxruntime")
    report = run(nets, name, data, export=("onnx",))
    assert report["ptq"]["integer_layers"] == on_integers
    assert report["metrics"]["ptq"]["SQNR"]["value"] > 20
    assert report["metrics"]["ptq"]["SQNR"]["value"] == pytest.approx(report["ptq"]["error"]["sqnr_db"], abs=1e-3)
    (exported,) = [entry for entry in report["exports"] if entry["format"] == "onnx"]
    assert exported["verified"], exported["reason"]
    assert exported["parity"]["sqnr_db"] > 30 and exported["value"] == pytest.approx(report["ptq"]["value"], abs=3)
    assert "drawn at random, which tell nothing of the data" in report["verdict"]["doubt"]
    assert "in doubt" in report["verdict"]["text"]


def test_a_folder_of_a_few_images_is_enough(nets: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        small = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        small.resize((24, 16 + 8 * (i % 2))).save(pictures / f"{i}.png")
    report = run(nets, "colour", pictures, export=("pt2",))
    # Files are written for one size, and compared on items of it.
    assert all(entry["verified"] and entry["parity"]["max_abs"] < 1e-2 for entry in report["exports"])
    assert report["data"]["train"] + report["data"]["validation"] + report["data"]["test"] == 12
    assert report["verdict"]["met"] and report["verdict"]["doubt"] == ""
    text = (tmp_path / "run" / "report.md").read_text()
    assert "| fp32 | exact |" in text and "accuracy" not in text and "inf" not in text.replace("information", "")

    # The figures again, from the file that was written, on what the task read: by numpy alone.
    recipe = Recipe.load(tmp_path / "run" / "recipe.yaml")
    from engine.data.unlabelled import forms
    from engine.user_code import made

    form, exact = forms(recipe.data)[0], made(f"{nets}:colour", "model")
    quantized = engine.load_quantized(tmp_path / "run")
    signal = noise = 0.0
    with torch.no_grad():
        for items, _ in form.batches("test", 1):
            wanted, got = (np.asarray(model(items.inputs), np.float64) for model in (exact, quantized))
            signal, noise = signal + (wanted**2).sum(), noise + ((wanted - got) ** 2).sum()
    assert report["ptq"]["value"] == pytest.approx(10 * np.log10(signal / noise), abs=0.05)


def test_a_model_of_one_channel_reads_images_as_grey(nets: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(6):
        Image.new("RGB", (12, 12), (40 * i, 10, 90)).save(tmp_path / "pictures" / f"{i}.png")
    report = run(nets, "grey", tmp_path / "pictures")
    assert any("one grey channel" in note for note in report["data"]["notes"])


def test_a_named_data_set_gives_its_inputs_without_labels(tmp_path: Path) -> None:
    recipe = Recipe.make(model="mlp", task="fidelity", data={"name": "diabetes"}, qat={"mode": "never"})
    report = engine.quantize(recipe, tmp_path / "run").data
    assert report["metrics"]["ptq"]["SQNR"]["value"] > 25
    assert any("its labels are not used" in note for note in report["data"]["notes"])


def test_thresholds_on_labels_and_missing_inputs_are_told_in_one_line(nets: Path) -> None:
    with pytest.raises(UsageError, match="drop:0.01 is of a metric on labels"):
        run(nets, "colour", "random:3x8x8", threshold="drop:0.01")
    with pytest.raises(UsageError, match="agreement:0.9 needs one answer an input"):
        run(nets, "twelve", "random:12x8x8", threshold="agreement:0.9")
    with pytest.raises(UsageError, match="fidelity needs inputs"):
        engine.quantize(Recipe.make(model=f"{nets}:colour", task="fidelity"), nets.parent / "run")


def test_training_distils_from_fp32(nets: Path) -> None:
    report = run(nets, "tokens", "random:int:9:50", threshold="sqnr:60", qat={"mode": "always", "epochs": 2}, preset="w4a8")
    assert report["qat"]["error"]["sqnr_db"] > report["ptq"]["error"]["sqnr_db"] and report["qat"]["kept"]


def test_loaders_of_inputs_alone_make_a_task_without_a_metric(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(F.relu(self.first(x)))

    dataset = torch.utils.data.TensorDataset(torch.randn(80, 8))
    task = engine.Task.of(torch.utils.data.DataLoader(dataset, batch_size=8))
    report = engine.quantize(model=Net(), task=task, out=tmp_path / "run", qat={"mode": "never"}).data
    assert report["verdict"]["threshold"] == "sqnr:20" and report["baseline"]["metric"] == "SQNR"
    assert report["ptq"]["value"] > 25 and "agreement" in report["metrics"]["ptq"]
