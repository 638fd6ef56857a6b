"""Multiply-adds against the textbook's products of sizes, however the operation is written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from given_net import Net
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from engine.lowering.graph.cost import costs
from engine.lowering.graph.trace import trace


class StandardizedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Whole(nn.Module):
    """Cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() < 1e9 else x


class Deformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offsets, self.weight = nn.Parameter(torch.randn(18, 6, 6)), nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:  # Cannot be traced.
            return x
        return deform_conv2d(x, self.offsets.expand(len(x), -1, -1, -1), self.weight)


CASES = {
    "convolution": (lambda s, x: s.c(x), {"c": nn.Conv2d(3, 8, 3, stride=2, padding=1)}, 8 * 16 * 27),
    "grouped convolution": (lambda s, x: s.c(x), {"c": nn.Conv2d(3, 6, 3, groups=3)}, 6 * 36 * 9),
    "transposed convolution": (lambda s, x: s.c(x), {"c": nn.ConvTranspose2d(3, 4, 2, stride=2)}, 64 * 3 * 4 * 4),
    "functional convolution": (lambda s, x: F.conv2d(x, s.c.weight, None), {"c": nn.Conv2d(3, 8, 3)}, 8 * 36 * 27),
    "weight-standardized convolution": (lambda s, x: s.c(x), {"c": StandardizedConv(3, 8, 3)}, 8 * 36 * 27),
    "linear layer on rows": (lambda s, x: s.f(x), {"f": nn.Linear(8, 5)}, 3 * 8 * 8 * 5),
    "products of values": (lambda s, x: x @ x.transpose(2, 3), {}, 3 * 8 * 8 * 8),
    "einsum": (lambda s, x: torch.einsum("bchw,bcgw->bchg", x, x), {}, 3 * 8 * 8 * 8),
    "attention": (lambda s, x: F.scaled_dot_product_attention(x, x, x), {}, 2 * 3 * 8 * 8 * 8),
    "recurrent layer": (lambda s, x: s.r(x.flatten(1, 2))[0], {"r": nn.GRU(8, 6, batch_first=True)}, 24 * (3 * 6 * 8 + 3 * 6 * 6)),
    "long short-term memory": (lambda s, x: s.r(x.flatten(1, 2))[0], {"r": nn.LSTM(8, 6, batch_first=True)}, 24 * 4 * (6 * 8 + 6 * 6)),
    "a product with a vector": (lambda s, x: x @ s.v, {"v": nn.Parameter(torch.ones(8))}, 3 * 8 * 8),
    "a bilinear layer": (lambda s, x: s.b(x, x), {"b": nn.Bilinear(8, 8, 5)}, 3 * 8 * 5 * 8 * 8),
    "deformable convolution": (lambda s, x: s.d(x), {"d": Deformed()}, 4 * 36 * 27),
    "a module that stays whole": (lambda s, x: s.w(x), {"w": Whole()}, 64 * 15),
    "elements alone": (lambda s, x: torch.relu(x) * 2, {}, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_multiply_adds_are_the_products_of_the_sizes(name: str) -> None:
    forward, modules, expected = CASES[name]
    model = Net(forward, **modules).eval()
    gm = trace(model, torch.randn(2, 3, 8, 8)).module
    assert sum(cost.macs for cost in costs(gm, torch.randn(1, 3, 8, 8))) == expected
