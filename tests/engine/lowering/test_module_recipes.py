"""Modules of torch.nn that stayed whole are rebuilt from what a file says of them, without anybody's code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import driving
import pytest
import torch
from given_net import Net
from torch import Tensor, nn

import engine
from engine.errors import EngineError
from engine.lowering.graph.module_recipes import build_module, module_recipe

IMAGES, ROWS, TOKENS = (2, 4, 8, 8), (2, 4), (2, 5, 8)
MODULES: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), IMAGES),
    (nn.Conv2d(4, 6, 3, padding="same"), IMAGES),
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), IMAGES),
    (nn.Linear(4, 5), ROWS),
    (nn.Bilinear(4, 4, 3, bias=False), ROWS),
    (nn.BatchNorm2d(4, affine=False), IMAGES),
    (nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGES),
    (nn.AvgPool2d(2), IMAGES),
    (nn.LPPool2d(2, 2), IMAGES),
    (nn.AdaptiveMaxPool2d((3, 2)), IMAGES),
    (nn.ReLU(inplace=True), IMAGES),
    (nn.Hardtanh(-0.5, 0.7), IMAGES),
    (nn.Hardtanh(), IMAGES),
    (nn.Threshold(0.1, 0.2), IMAGES),
    (nn.RReLU(), IMAGES),
    (nn.CELU(1.3), IMAGES),
    (nn.Softshrink(0.3), IMAGES),
    (nn.GELU("tanh"), IMAGES),
    (nn.Flatten(), IMAGES),
    (nn.Unflatten(1, (2, 2)), IMAGES),
    (nn.Unfold(2, stride=2), IMAGES),
    (nn.Dropout(0.3), IMAGES),
    (nn.GroupNorm(2, 4), IMAGES),
    (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), IMAGES),
    (nn.LocalResponseNorm(3, 0.1), IMAGES),
    (nn.Softmax(dim=1), IMAGES),
    (nn.LayerNorm(8, bias=False), IMAGES),
    (nn.RMSNorm(8, 1e-3), IMAGES),
    (nn.PReLU(4), IMAGES),
    (nn.Upsample(scale_factor=2.0), IMAGES),
    (nn.UpsamplingBilinear2d((9, 7)), IMAGES),
    (nn.ConvTranspose2d(4, 4, 2, 2), IMAGES),
    (nn.LeakyReLU(0.2), IMAGES),
    (nn.ReflectionPad2d((1, 0, 2, 1)), IMAGES),
    (nn.ConstantPad2d(1, 0.5), IMAGES),
    (nn.PixelShuffle(2), IMAGES),
    (nn.MultiheadAttention(8, 2, bias=False, batch_first=True), TOKENS),
    (nn.RNN(8, 6, 2, "relu", batch_first=True), TOKENS),
    (nn.LSTM(8, 6, 2, bias=False, bidirectional=True, proj_size=3), TOKENS),
    (nn.GRU(8, 6, dropout=0.0, batch_first=True), TOKENS),
    (nn.GRUCell(4, 3), ROWS),
    (nn.LSTMCell(4, 3, bias=False), ROWS),
    (nn.TransformerEncoderLayer(8, 2, 12, 0.2, "gelu", 1e-4, batch_first=True, norm_first=True), TOKENS),
    (nn.TransformerDecoderLayer(8, 4, 12, bias=False), TOKENS),
    (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12), 3, nn.LayerNorm(8), enable_nested_tensor=False), TOKENS),
    (nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 12), 2), TOKENS),
    (nn.Transformer(8, 2, 1, 2, 12, batch_first=True), TOKENS),
    (nn.Sequential(nn.Conv2d(4, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.Hardtanh())), IMAGES),
]  # fmt: skip


def _called(module: nn.Module, x: Tensor) -> Tensor:
    """The module's first result."""
    two = nn.Bilinear | nn.TransformerDecoder | nn.TransformerDecoderLayer | nn.Transformer
    count = 3 if isinstance(module, nn.MultiheadAttention) else 2 if isinstance(module, two) else 1
    result = module(*(x.clone() for _ in range(count)))
    return result[0] if isinstance(result, tuple) else result  # type: ignore[no-any-return]


@pytest.mark.parametrize(("module", "shape"), MODULES, ids=lambda m: type(m).__name__ if isinstance(m, nn.Module) else "")
def test_modules_are_rebuilt_from_their_arguments(module: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    recipe = module_recipe(module.eval())
    again = build_module(json.loads(json.dumps(recipe)))
    assert type(again) is type(module)
    assert not again.training
    again.load_state_dict(module.state_dict(), assign=True)
    x = torch.randn(shape)
    with torch.no_grad():
        assert torch.equal(_called(again, x), _called(module, x))


class Own(nn.Conv2d):
    """Another class than torch's."""


def _with_hook() -> nn.Module:
    module = nn.Linear(3, 3)
    module.register_forward_hook(lambda *_: None)
    return module


def _unequal_layers() -> nn.Module:
    stack = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12), 2, enable_nested_tensor=False)
    stack.layers[1].norm_first = True
    return stack


def _own_activation() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 12, activation=torch.tanh)


@pytest.mark.parametrize("make", [lambda: Own(3, 3, 1), lambda: nn.Sequential(Own(3, 3, 1)), _with_hook, _unequal_layers, _own_activation])
def test_what_arguments_do_not_tell_cannot_be_rebuilt(make: Callable[[], nn.Module]) -> None:
    assert module_recipe(make().eval()) is None


def test_a_file_that_asks_for_another_class_is_refused() -> None:
    for name in ("Parameter", "functional", "init", "modules", "nothing"):
        with pytest.raises(EngineError, match="damaged"):
            build_module({"class": name, "arguments": {}})
        with pytest.raises(EngineError, match="damaged"):
            build_module({"class": "Sequential", "arguments": {}, "modules": {"0": {"class": name, "arguments": {}}}})


def test_a_file_that_nests_without_end_is_refused() -> None:
    recipe: dict[str, object] = {"class": "ReLU", "arguments": {}}
    for _ in range(400):
        recipe = {"class": "Sequential", "arguments": {}, "modules": {"0": recipe}}
    with pytest.raises(EngineError, match="damaged"):
        build_module(recipe)


WHOLE: dict[str, Callable[[], nn.Module]] = {
    "recurrent": lambda: Net(lambda s, x: s.f(s.l(s.c(x).transpose(1, 2))[0][:, -1]),
                             c=nn.Conv1d(4, 8, 3), l=nn.LSTM(8, 8, 2, batch_first=True, bidirectional=True), f=nn.Linear(16, 3)),
    "a transformer": lambda: Net(lambda s, x: s.f(s.t(s.c(x).transpose(1, 2)).mean(1)), c=nn.Conv1d(4, 8, 3), f=nn.Linear(8, 3),
                                 t=nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)),
    "a bounded activation": lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.Hardtanh(), nn.Flatten(), nn.Linear(80, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_a_stored_network_with_modules_of_torch_is_loaded_without_its_code(name: str, own_cache: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = WHOLE[name]().eval()
    batches = [(x, model(x).detach()) for x in (torch.randn(16, 4, 12) for _ in range(4))]
    task = engine.Task.of(batches, metric=lambda outputs, targets: float(1 - (outputs - targets).square().mean()))
    with driving.untimed():
        report = engine.quantize(model=model, task=task, out=tmp_path / "out", preset="w8a8", qat={"mode": "never"})
    assert report.data["ptq"]["error"]["sqnr_db"] > 25
    loaded = engine.load_quantized(tmp_path / "out")
    x, wanted = batches[0]
    noise = (loaded(x) - wanted).square().sum()
    assert float(10 * torch.log10(wanted.square().sum() / noise)) > 25
