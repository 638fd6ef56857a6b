"""The graph as rows."""

import torch
import torch.nn.functional as F
from torch import nn

from engine.lowering.graph.table import COLUMNS, cells, rows, shape_text
from engine.lowering.graph.trace import trace
from engine.models.simplecnn import SimpleCNN

NAMES = ["x", "conv1", "bn1", "relu", "pool", "conv2", "bn2", "relu_1", "pool_1", "flatten", "fc1", "relu_2", "fc2", "output"]


def test_simplecnn():
    table = {row.name: row for row in rows(trace(SimpleCNN().eval(), torch.randn(2, 3, 32, 32)).module)}
    assert list(table) == NAMES
    times = "\u00d7"
    assert cells(table["conv1"]) == ("call_module", "conv1", "conv1", "x", "", times.join(("N", "32", "32", "32")))
    assert table["conv1"].params == 3 * 32 * 9 + 32
    assert table["relu"].opcode == "call_function"
    assert table["relu"].target == "torch.relu"
    assert table["flatten"].args == "pool_1, 1"
    assert table["output"].args == "fc2"
    assert table["x"].params == table["relu"].params == table["output"].params == 0
    assert all(len(cells(row)) == len(COLUMNS) for row in table.values())
    assert sum(row.params for row in table.values()) == sum(p.numel() for p in SimpleCNN().parameters())


def test_arguments_targets_and_methods():
    class Model(nn.Module):
        def forward(self, x):
            return F.pad(torch.cat([x, x + 1], dim=1), (1, 1)).reshape(x.size(0), -1)

    table = {row.name: row for row in rows(trace(Model().eval(), torch.randn(2, 3, 4, 4)).module)}
    assert table["cat"].args == "(x, add)"
    assert table["cat"].kwargs == "dim=1"
    assert table["pad"].target == "F.pad"
    assert table["add"].target == "operator.add"
    assert table["reshape"].args == "pad, size, -1"
    assert table["size"].shape == ""


def test_shape_text():
    assert shape_text(None) == ""
    assert shape_text(()) == ""
    assert shape_text((None, 3)) == "N\u00d73"
