"""How graphs and programs are called: arguments to inputs, results to what a model returns, and that as JSON."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.errors import EngineError
from engine.lowering.graph.call import Call, call_of, inputs_of, tree_of
from engine.lowering.graph.sizes import held_sizes
from engine.lowering.graph.structured import structured
from engine.lowering.graph.trace import trace
from engine.tasks.base import Batch
from engine.tasks.outputs import Outputs, normalized

Point = namedtuple("Point", ("x", "y"))


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, pair: tuple[Tensor, dict[str, Tensor]], *, table: Tensor, mode: str = "sum", bias: Any = None) -> Any:
        x = self.embed(ids).sum(1) + pair[0] + pair[1]["more"] + table
        return Point(self.head(x), {"x": x, "bias": bias}) if mode == "sum" else x


def _batch(count: int) -> Batch:
    # The table is the same for all items.
    given = torch.randint(20, (count, 5)), (torch.randn(count, 8), {"more": torch.randn(count, 8)})
    return Batch(given, {"table": torch.randn(7, 8)[:1], "mode": "sum"}, None, count)


def test_tensors_of_all_arguments_are_inputs_in_order_with_names():
    model = Mixed().eval()
    graph = trace(model, _batch(4)).module
    call = call_of(graph.graph)
    assert call is not None
    assert [given.name for given in call.inputs] == ["ids", "pair_0", "pair_1_more", "table"]
    assert [given.shape for given in call.inputs] == [(None, 5), (None, 8), (None, 8), (1, 8)]
    assert call.inputs[0].dtype == torch.int64
    for count in (1, 9):
        batch = _batch(count)
        found, expected = structured(graph)(*batch.args, **batch.kwargs), model(*batch.args, **batch.kwargs)
        assert found._fields == expected._fields
        assert torch.allclose(found.x, expected.x, atol=1e-6)
        assert torch.allclose(found.y["x"], expected.y["x"], atol=1e-6)
        assert found.y["bias"] is None
        assert inputs_of(graph, batch)[2] is batch.args[1][1]["more"]


def test_another_constant_or_structure_than_the_traced_one_is_refused():
    call = call_of(trace(Mixed().eval(), _batch(4)).module.graph)
    assert call is not None
    batch = _batch(2)
    for args, kwargs, said in [
        (batch.args, {**batch.kwargs, "mode": "mean"}, "traced with mode='sum'"),
        (batch.args[:1], dict(batch.kwargs), "pair is missing"),
        ((batch.args[0], batch.args[1][:1]), dict(batch.kwargs), "takes 2 values for pair"),
        ((batch.args[0], (batch.args[1][0], {"less": 1})), dict(batch.kwargs), r"takes more in pair\[1\]"),
        ((*batch.args, 3, 4), dict(batch.kwargs), "not 4 arguments by position"),
    ]:
        with pytest.raises(EngineError, match=said):
            call.flatten(args, kwargs)


@pytest.mark.parametrize("value", [
    {"a": (1, [None, "x"]), "b": torch.ones(1)}, [torch.ones(1), {3: torch.zeros(2)}], Point(torch.ones(1), 2.5),
    Outputs(a=torch.ones(2), b=None),
])  # fmt: skip
def test_a_tree_survives_json(value):
    tensors: list[Any] = []
    call = Call((), (), {}, (), tree_of(value, tensors))
    again = Call.from_json(json.loads(json.dumps(call.to_json())), len(tensors)).rebuild(tensors)
    assert type(again).__name__ in (type(value).__name__, "Fields")
    assert str(tuple(again)) == str(tuple(value))


@pytest.mark.parametrize("change", [
    {"outputs": {"$": 2}}, {"outputs": {"$": -1}}, {"outputs": {"$": True}}, {"outputs": {"run": "x"}}, {"args": [{"$": 0}, {"$": 0}]},
    {"args": []}, {"kwargs": []}, {"positional": [3]}, {"outputs": {"named": [["class", 1]]}},
    {"outputs": {"named": [["import os", 1]]}},
    {"inputs": [{"value": "x", "name": "x", "dtype": "nn", "shape": []}]},
    {"inputs": [{"value": "x", "name": "x", "dtype": "float32", "shape": [-1]}]},
])  # fmt: skip
def test_a_damaged_call_is_refused(change):
    sound = {
        "inputs": [{"value": "x", "name": "x", "dtype": "float32", "shape": [None]}], "args": [{"$": 0}], "kwargs": {}, "positional": ["x"],
        "outputs": {"$": 0},
    }  # fmt: skip
    assert Call.from_json(sound, 1).plain
    with pytest.raises((ValueError, TypeError)):
        Call.from_json({**sound, **change}, 1)


def test_a_tree_of_great_depth_is_refused():
    tree: Any = {"$": 0}
    for _ in range(100):
        tree = {"list": [tree]}
    with pytest.raises(ValueError, match="no tree"):
        Call.from_json({"inputs": [], "args": [], "kwargs": {}, "positional": [], "outputs": tree}, 1)


def test_objects_that_hold_tensors_become_outputs():
    @dataclass
    class Found:
        logits: Tensor
        loss: Tensor | None = None

    class Plain:
        def __init__(self) -> None:
            self.boxes, self.note = torch.ones(2, 4), "x"

    found = normalized([Found(torch.ones(1)), Plain()])
    assert found[0].logits is found[0][0]
    assert found[0].loss is None
    assert found[1].boxes.shape == (2, 4)
    with pytest.raises(AttributeError, match="no 'other'"):
        found[0].other  # noqa: B018


def test_lengths_of_tokens_stay_free_where_the_model_does_not_compute_with_them():
    class Reads(nn.Module):
        def __init__(self, holds: bool) -> None:
            super().__init__()
            self.embed, self.holds = nn.Embedding(20, 8), holds

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            x = self.embed(ids) * mask[:, :, None]
            return x.sum(1) / ids.shape[1] if self.holds else x.sum(1)

    example = Batch((torch.randint(20, (2, 6)), torch.ones(2, 6, dtype=torch.bool)), {}, None, 2)
    longer = (torch.randint(20, (3, 11)), torch.ones(3, 11, dtype=torch.bool))
    for computes in (False, True):
        model = Reads(computes).eval()
        found = trace(model, example).module
        assert held_sizes(found.graph) is None and torch.equal(found(*longer), model(*longer))
