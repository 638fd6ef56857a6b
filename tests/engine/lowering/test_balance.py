"""Narrow branches of concatenations: the graph computes what it did, and on integers the branch keeps its levels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import drive
from given_net import Net
from torch import Tensor, fx, nn

from engine.algorithms.channelwise import quantize_weight
from engine.export.base import ExportContext
from engine.kernels.choose import kernels_for
from engine.kernels.probe import probe
from engine.lowering.graph.balance import Branch, balance, cat_inputs, find_branches
from engine.lowering.graph.balancing import spans
from engine.lowering.graph.convert import convert, unit_parameters
from engine.lowering.graph.layout import arrange
from engine.lowering.graph.observe import Observed
from engine.lowering.graph.runtime import QuantizedModel
from engine.lowering.graph.trace import trace
from engine.numerics.sqnr import sqnr_db
from engine.recipe.recipe import Recipe
from engine.recipe.spec import ActivationSpec, LayerSpec, WeightSpec
from engine.tasks.base import Batch

SPEC = LayerSpec(WeightSpec(8), ActivationSpec(7))


def conv(inputs: int, outputs: int, kernel: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **more)


def scaled(layer: nn.Module, factor: float, columns: slice = slice(None)) -> None:
    with torch.no_grad():
        layer.weight[:, columns] *= factor  # type: ignore[operator]
        if columns == slice(None) and layer.bias is not None:
            layer.bias *= factor  # type: ignore[operator]


def joined(middle: Callable[..., Tensor], outputs: int = 16, **more: nn.Module) -> Callable[[], nn.Module]:
    """Branches ``a`` and ``b``, ``b`` 500 times narrower and its weights in ``c`` 500 times larger: both matter alike."""

    def make() -> nn.Module:
        net = Net(lambda s, x: middle(s, s.stem(x).relu()), stem=conv(3, 8), a=conv(8, 8), b=conv(8, 8), c=conv(16, outputs), **more)
        scaled(net.b, 1 / 500)
        scaled(net.c, 500, slice(8, 16))
        return net

    return make


def flattened() -> nn.Module:
    net = Net(
        lambda s, x: s.f(torch.cat([s.a(x).relu(), s.b(x).relu()], 1).relu().flatten(1)),
        a=conv(3, 4),
        b=conv(3, 4),
        f=nn.Linear(8 * 64, 10),
    )
    scaled(net.b, 1 / 500)
    scaled(net.f, 500, slice(4 * 64, None))
    return net


def grouped() -> nn.Module:
    net = Net(
        lambda s, x: s.c(torch.cat([s.a(x).relu(), s.b(x).relu()], dim=1)).mean((2, 3)),
        a=conv(3, 8), b=conv(3, 8), c=conv(16, 12, groups=4),
    )  # fmt: skip
    scaled(net.b, 1 / 500)
    with torch.no_grad():
        net.c.weight[6:] *= 500  # type: ignore[index]
    return net


def tokens() -> nn.Module:
    """Features of tokens, joined along the last dimension."""
    net = Net(
        lambda s, x: s.f(torch.cat([s.a(x.flatten(2)).relu(), s.b(x.flatten(2)).relu()], -1)).mean(1),
        a=nn.Linear(64, 8), b=nn.Linear(64, 8), f=nn.Linear(16, 10),
    )  # fmt: skip
    scaled(net.b, 1 / 500)
    scaled(net.f, 500, slice(8, 16))
    return net


NETS: dict[str, Callable[[], nn.Module]] = {
    "of two convolutions": joined(lambda s, x: s.c(torch.cat([s.a(x).relu(), s.b(x).relu()], 1)).mean((2, 3))),
    "pooled and read twice": joined(
        lambda s, x: (lambda y: s.c(torch.max_pool2d(y, 2)).mean((2, 3)) + s.d(y.mean((2, 3))))(torch.cat([s.a(x), s.b(x).relu()], 1)),
        d=nn.Linear(16, 16),
    ),
    "with a branch that others read": joined(
        lambda s, x: (lambda b: s.c(torch.cat([s.a(x).relu(), b], 1)).mean((2, 3)) + 100 * s.d(b).mean((2, 3)))(s.b(x).relu()),
        d=conv(8, 16),
    ),
    "after an activation that no factor goes through": joined(
        lambda s, x: s.c(torch.cat([s.a(x).relu(), torch.sigmoid(s.b(x)) / 500], 1)).mean((2, 3))
    ),
    "within another": joined(
        lambda s, x: (lambda a, b: s.c(torch.cat([torch.cat([a, b[:, :4]], 1), b[:, 4:]], 1)).mean((2, 3)))(s.a(x), s.b(x))
    ),
    "flattened": flattened,
    "grouped": grouped,
    "tokens": tokens,
}


def traced(make: Callable[[], nn.Module]) -> tuple[nn.Module, fx.GraphModule, Tensor]:
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    x = torch.randn(8, 3, 8, 8)
    return model, trace(model, x[:2]).module, x


def specs(gm: fx.GraphModule) -> dict[str, LayerSpec]:
    layers = nn.Conv2d | nn.Linear
    return {str(n.target): SPEC for n in gm.graph.nodes if n.op == "call_module" and isinstance(gm.get_submodule(str(n.target)), layers)}


def found(gm: fx.GraphModule, x: Tensor) -> tuple[Branch, ...]:
    layout = arrange(gm, specs(gm))
    return find_branches(gm, layout, spans(gm, cat_inputs(gm, layout), iter([(x,)])))


def on_integers(gm: fx.GraphModule, x: Tensor) -> QuantizedModel:
    layout = arrange(gm, specs(gm))
    seen = Observed(gm, layout)
    seen.batch(x)
    weights = {unit.layer: quantize_weight(unit_parameters(gm, unit)[0], WeightSpec(8)) for unit in layout.units}
    return QuantizedModel(convert(gm, layout, seen.grids(), weights), kernels_for(probe()))


def sqnr(wanted: Tensor, got: Tensor) -> float:
    return sqnr_db(float(wanted.double().square().sum()), float((got.double() - wanted.double()).square().sum()))


@pytest.mark.parametrize("name", NETS)
def test_a_scaled_branch_changes_nothing_in_floating_point(name: str) -> None:
    model, gm, x = traced(NETS[name])
    branches = found(gm, x)
    assert branches and all(branch.reason is None for branch in branches)
    # Powers of two round nothing; the order of sums within a kernel may depend on memory alone.
    assert sqnr(model(x), balance(gm, branches)(x)) > 120
    assert torch.equal(gm(x), model(x))


@pytest.mark.parametrize("name", NETS)
def test_a_narrow_branch_of_a_concatenation_keeps_its_levels(name: str) -> None:
    model, gm, x = traced(NETS[name])
    before, after = on_integers(gm, x), on_integers(balance(gm, found(gm, x)), x)
    lost, kept = sqnr(model(x), before(x)), sqnr(model(x), after(x))
    assert kept > 25 and kept > lost + 8, f"{lost:.1f} dB became {kept:.1f}"


@pytest.mark.parametrize("name", ["of two convolutions", "with a branch that others read", "flattened"])
def test_onnx_runtime_keeps_them_too(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from engine.export.onnx.file import load, write

    model, gm, x = traced(NETS[name])
    quantized = on_integers(balance(gm, found(gm, x)), x)
    given = ExportContext(quantized, Batch((x,)), dict(model.named_modules()), "model: net\n", "any", "net", threads=1)
    path = tmp_path / "model.onnx"
    write(given, path)
    runner = load(path, given)
    assert sqnr(model(x), torch.as_tensor(runner.run(Batch((x,))))) > 25


def test_branches_of_one_width_stay_as_they_are() -> None:
    _, gm, x = traced(lambda: Net(lambda s, x: s.c(torch.cat([s.a(x), s.b(x)], 1)).mean((2, 3)), a=conv(3, 8), b=conv(3, 8), c=conv(16, 8)))
    assert found(gm, x) == ()


def test_a_narrow_branch_that_hardly_counts_is_not_scaled() -> None:
    """Its weights are no larger than the others': what its rounding adds is 20 dB under what theirs adds already."""

    def make() -> nn.Module:
        net = Net(lambda s, x: s.c(torch.cat([s.a(x), s.b(x)], 1)).mean((2, 3)), a=conv(3, 8), b=conv(3, 8), c=conv(16, 8))
        scaled(net.b, 1 / 12)
        return net

    _, gm, x = traced(make)
    assert found(gm, x) == ()


def test_where_a_factor_cannot_be_undone_the_branch_is_named() -> None:
    make = joined(lambda s, x: (lambda y: s.c(y).mean((2, 3)) + torch.sigmoid(y).mean((2, 3)))(torch.cat([s.a(x), s.b(x)], 1)))
    _, gm, x = traced(make)
    (branch,) = found(gm, x)
    assert branch.reason == "sigmoid reads it too" and branch.layers == ("c",) and branch.ratio > 100


WIDE = """
import torch
from torch import nn


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.a = nn.Conv2d(8, 8, 3, 2, 1)
        self.b = nn.Conv2d(8, 8, 3, 2, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.fc(torch.cat([self.a(x).relu(), self.b(x).relu()], 1).mean((2, 3)))


def make():
    torch.manual_seed(1)
    model = Wide().requires_grad_(False)
    model.b.weight /= 1000
    model.b.bias /= 1000
    model.fc.weight[:, 8:] *= 1000
    model.fc.weight[:, :8] *= 0.2
    return model
"""


def test_a_run_scales_a_narrow_branch_and_says_so(tmp_path: Path, own_cache: Path) -> None:
    file = tmp_path / "wide.py"
    file.write_text(WIDE)
    recipe = Recipe.make(
        model=f"{file}:make",
        preset="w8a8",
        data={"calibration": 32, "limit": 64},
        threshold="drop:1",
        qat={"mode": "always", "epochs": 1},
    )
    outcome = drive(recipe, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert outcome.error is None and report["ptq"]["error"]["sqnr_db"] > 25
    (row,) = report["balanced"]
    assert row["layers"] == ["fc"] and row["ratio"] > 100 and row["factor"] >= 64 and row["reason"] is None
    (layer,) = [layer for layer in report["layers"] if layer["name"] == "fc"]
    assert "narrower" in layer["reason"]
    assert "narrower" in (tmp_path / "run" / "report.md").read_text()
