"""How much memory calibration holds, against the fp32 model on the same batch, as torch's allocator counts it."""

import json

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from engine.data.images.base import Data, MemorySplit
from engine.events.cancellation import StopToken
from engine.lowering.graph import calibration
from engine.lowering.graph.layout import arrange
from engine.lowering.graph.observe import Observed
from engine.lowering.graph.trace import trace
from engine.models.memory import channels_last
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec
from engine.tasks.classification import Classification

BATCH, SIDE = 16, 64


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.one, self.two = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.end = nn.Linear(32, 10)

    def forward(self, x):
        x = self.relu(self.stem(x))
        y = self.two(self.relu(self.one(x)))
        y += x
        return self.end(self.relu(y).mean((2, 3)))


def peak(place, run):
    """The most bytes that were held at once beyond those held at the start, the operations' own temporary ones included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    seen.export_chrome_trace(str(place / "trace.json"))
    events = [e for e in json.loads((place / "trace.json").read_text())["traceEvents"] if e.get("name") == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    gm = trace(Residual().eval(), torch.randn(2, 3, SIDE, SIDE)).module
    return channels_last(gm)


@pytest.fixture(scope="module")
def images():
    return torch.randn(BATCH, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)


def a_layout(gm, observer):
    return arrange(gm, {name: LayerSpec(WeightSpec(), ActivationSpec(8, False, observer)) for name in ("stem", "one", "two", "end")})


def plain(gm, x):
    with torch.inference_mode():
        gm(x)


@pytest.mark.parametrize("observer", ["minmax", "moving-average", "percentile", "histogram-mse", "entropy"])
def test_looking_at_values_holds_none_of_them(graph, images, tmp_path, observer):
    observed = Observed(graph, a_layout(graph, observer), counting=True)
    assert len(observed.observers) == 5
    alone = peak(tmp_path, lambda: plain(graph, images))
    assert alone > 2 * 32 * BATCH * SIDE * SIDE * 4
    assert peak(tmp_path, lambda: observed.batch(images)) <= 1.2 * alone


@pytest.mark.parametrize("observer", ["minmax", "moving-average", "histogram-mse"])
def test_a_batch_in_parts_holds_little(graph, images, tmp_path, observer, monkeypatch):
    raw = MemorySplit(torch.randint(0, 255, (2 * BATCH, 3, SIDE, SIDE), dtype=torch.uint8), torch.zeros(2 * BATCH, dtype=torch.int64))
    data = Data("noise", ("a",) * 10, (3, SIDE, SIDE), (0.5,) * 3, (0.5,) * 3, raw, raw, raw, True, 0)
    layout = a_layout(graph, observer)

    def run():
        for _ in calibration.calibrate(graph, layout, Classification(data), 2 * BATCH, BATCH, "cpu", StopToken()):
            pass

    monkeypatch.setattr(calibration, "_CACHED", 4 * 32 * SIDE * SIDE * 2)
    assert peak(tmp_path, run) <= 0.6 * peak(tmp_path, lambda: plain(graph, images))
