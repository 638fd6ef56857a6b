"""Networks whose values reach a layer in other layouts than channels last: native against simulation and ONNX Runtime.

Activations have 8 bits and weights 6, so that no instruction set saturates and oneDNN's own step quantizes.
"""

from functools import partial
from pathlib import Path

import nets
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.kernels.dnnl.layers import Direct
from engine.kernels.dnnl.library import path
from engine.kernels.simulate import Simulate
from engine.lowering.graph.runtime import QuantizedModel
from engine.numerics.sqnr import sqnr_db
from engine.recipe.spec import WeightSpec
from engine.tasks.base import Batch

pytestmark = pytest.mark.skipif(path() is None, reason="onednn-cpu-gomp is not installed")


class NonLocal(nn.Module):
    """Attention between places (Wang et al. 2018) with 18 channels and a learned gain (Zhang et al. 2019): its result comes
    contiguous."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 18, 3, 2, 1)
        self.theta, self.phi, self.g, self.back = (nn.Conv2d(18, 18, 1) for _ in range(4))
        self.last, self.head = nn.Conv2d(18, 18, 3, padding=1), nn.Linear(18, 4)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = self.stem(x).relu()
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        weights = torch.softmax(theta.transpose(1, 2) @ phi / 4, -1)
        y = (g @ weights.transpose(1, 2)).reshape(-1, 18, 8, 8) * self.gain
        x = self.last(self.back(y) + x).relu()
        return self.head(x.mean((2, 3)))


class Coordinates(nn.Module):
    """Rows and columns beside the images (Liu et al. 2018), as tensors that are seen from everywhere."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Parameter(torch.linspace(-1, 1, 16).view(1, 1, 16, 1))
        self.columns = nn.Parameter(torch.linspace(-1, 1, 16).view(1, 1, 1, 16))
        self.of_rows, self.of_columns, self.of_images = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(18, 6, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.last, self.head = nn.Conv2d(18, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, x):
        rows, columns = self.rows.expand(x.size(0), -1, -1, 16), self.columns.expand(x.size(0), 18, 16, -1)
        x = torch.cat([self.of_rows(rows), self.of_columns(columns), self.of_images(x)], 1).relu()
        return self.head(self.last(x).relu().mean((2, 3)))


class Spectrogram(nn.Module):
    """One channel whose two axes are exchanged."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.stem(x[:, :1].transpose(2, 3) * 1.5).relu().mean((2, 3)))


SHAPES = {NonLocal: (3, 16, 16), Coordinates: (3, 16, 16), Spectrogram: (3, 32, 16)}
NETWORKS = pytest.mark.parametrize("make", SHAPES, ids=lambda make: make.__name__)


def distance(wanted, got):
    return sqnr_db(wanted.double().square().sum().item(), (wanted - got).double().square().sum().item())


def images_for(make, count=16):
    return torch.randn(count, *SHAPES[make], generator=torch.Generator().manual_seed(5))


def fp32(make):
    torch.manual_seed(0)
    return make().eval()


def both(make, images):
    """The given to export, and the same integers on native kernels and in simulation."""
    given = nets.quantized(make, WeightSpec(6), 8, images=images)
    native, simulated = (QuantizedModel(given.model.program, kernels, given.whole) for kernels in ([Direct(), Simulate()], [Simulate()]))
    assert not native.simulated
    return given, native, simulated


@NETWORKS
@pytest.mark.parametrize("batch", [1, 2, 7, 16])
def test_native_computes_what_simulation_and_fp32_do_in_any_layout(make, batch):
    images = images_for(make)
    _, native, simulated = both(make, images)
    x = images[:batch]
    with torch.no_grad():
        assert distance(fp32(make)(x), native(x)) > 25
    assert distance(simulated(x), native(x)) > 40
    assert native.unplanned == []
    # Each image's result is its own, whatever the batch that it is in.
    torch.testing.assert_close(torch.cat([native(one[None]) for one in x]), native(x), rtol=1e-3, atol=1e-3 * float(native(x).abs().max()))


@NETWORKS
def test_onnx_runtime_computes_what_native_does_in_any_layout(make, tmp_path: Path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from engine.export.onnx.file import build, load

    images = images_for(make)
    given, native, _ = both(make, images)
    onnx.save(build(given.model, given, "integers"), file := tmp_path / "model.onnx")
    runner = load(file, given)
    assert distance(native(images), torch.as_tensor(runner.run(Batch((images,))))) > 38


def quarters(count, seed):
    """Images of noise with a bright place in one of four quarters, which is their class."""
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(count, 3, 16, 16, generator=g) * 0.3, torch.randint(0, 4, (count,), generator=g)
    for image, which in zip(x, y.tolist(), strict=True):
        row, column = which // 2 * 8, which % 2 * 8
        image[which % 3, row + 2 : row + 6, column + 2 : column + 6] += 2 + which
    return x, y


def test_a_trained_non_local_block_of_eighteen_channels_keeps_its_accuracy():
    (x, y), (unseen, labels) = quarters(256, 1), quarters(200, 2)
    model = fp32(NonLocal)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for start in range(0, 256 * 8, 64):
        part = slice(start % 256, start % 256 + 64)
        optimizer.zero_grad()
        F.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    trained = model.eval().requires_grad_(False)
    _, native, simulated = both(partial(_itself, trained), x[:64])
    right = [(m(unseen).argmax(1) == labels).float().mean().item() for m in (trained, native, simulated)]
    assert right[0] > 0.98
    assert right[1] >= right[0] - 0.01
    assert distance(trained(unseen), native(unseen)) > 20
    assert distance(simulated(unseen), native(unseen)) > 35


def _itself(model):
    return model
