"""The ONNX file in TensorRT's dialect: the rules of its explicit quantization, looked up in the graph, and what ONNX Runtime finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nets
import pytest
import torch
from test_onnx import distance, reference

from engine.errors import EngineError
from engine.export.base import ExportContext
from engine.export.onnx.tensorrt import build, check, command, load, refuses, write
from engine.planning.planner import plan
from engine.recipe.capabilities import CONVOLUTION
from engine.recipe.recipe import Recipe
from engine.recipe.spec import ActivationSpec, LayerSpec, Rule, WeightSpec
from engine.tasks.base import Batch

onnx = pytest.importorskip("onnx")
SPECS = [(nets.W8, 8), (nets.W8, 7), (nets.W4, 8), (nets.GROUPS, 8), (nets.W8, None)]


def given_of(make: Any, weights: WeightSpec = nets.W8, bits: int | None = 8) -> ExportContext:
    return nets.quantized(make, weights, bits, symmetric=True)


def model_of(given: ExportContext) -> Any:
    made = build(given)
    return made.graph.model(made.inputs, made.outputs, made.results, given.about)


@pytest.mark.parametrize("make", nets.NETS, ids=lambda make: make.__name__)
@pytest.mark.parametrize(("weights", "bits"), SPECS)
def test_the_reference_evaluator_gives_what_was_measured(make: Any, weights: WeightSpec, bits: int | None) -> None:
    given = given_of(make, weights, bits)
    x = torch.randn(5, 3, 16, 16)
    # A value in the middle between two steps may be rounded to either.
    assert distance(given.model(x), reference(model_of(given), x)) > 35


@pytest.mark.parametrize("make", nets.NETS, ids=lambda make: make.__name__)
def test_onnx_runtime_gives_what_was_measured_for_any_batch(make: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    given = given_of(make)
    write(given, path := tmp_path / "model.tensorrt.onnx")
    runner = load(path, given)
    for count in (1, 2, 5):
        x = torch.randn(count, 3, 16, 16)
        assert distance(given.model(x), runner.run(Batch((x,)))) > 30


class Looked:
    """A graph by who makes each value."""

    def __init__(self, model: Any) -> None:
        self.nodes, self.makers = list(model.graph.node), {name: node for node in model.graph.node for name in node.output}
        self.constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.inputs = list(model.graph.input)

    def op(self, name: str) -> str:
        return self.makers[name].op_type if name in self.makers else ""


@pytest.mark.parametrize("make", nets.NETS, ids=lambda make: make.__name__)
def test_nodes_are_where_the_fuser_looks_for_them(make: Any) -> None:
    graph = Looked(model_of(given_of(make)))
    pairs = [node for node in graph.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        zero = graph.constants[node.input[2]]
        assert zero.dtype == "int8" and not zero.any(), "int8 with zero point 0 and nothing else"
        assert graph.constants[node.input[1]].dtype == "float32"
    weighted = [node for node in graph.nodes if node.op_type in ("Conv", "MatMul") and graph.op(node.input[1]) == "DequantizeLinear"]
    quantized = [node for node in weighted if graph.makers[node.input[1]].input[0] in graph.constants]
    assert quantized
    for node in quantized:
        assert graph.op(node.input[0]) == "DequantizeLinear", f"{node.name} reads what is not quantized"
        made = graph.makers[node.input[1]]
        weight, scale = graph.constants[made.input[0]], graph.constants[made.input[1]]
        axis = next(a.i for a in made.attribute if a.name == "axis")
        assert weight.dtype == "int8" and axis == (0 if node.op_type == "Conv" else 1) and len(scale) == weight.shape[axis]
        if len(node.input) > 2:
            assert graph.constants[node.input[2]].dtype == "float32", "TensorRT has no int32 biases"
    for node in graph.nodes:
        assert not (node.op_type in ("Clip", "Cast") and graph.op(node.input[0]) == "QuantizeLinear"), "integers are only dequantized"


def test_both_inputs_of_a_residual_are_quantized_but_what_the_convolution_adds_to() -> None:
    from torch import nn

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a = torch.relu(self.a(x))
            b = torch.relu(self.b(a))
            return torch.relu(self.c(a + b)).mean((2, 3))

    for make in (nets.Residual, Two):
        graph, seen = Looked(model_of(given_of(make))), 0
        for node in graph.nodes:
            if node.op_type != "Add" or not all(name in graph.makers for name in node.input):
                continue
            seen += 1
            ops = sorted(graph.op(name) for name in node.input)
            assert ops in (["DequantizeLinear", "DequantizeLinear"], ["Conv", "DequantizeLinear"])
        assert seen


def test_affine_grids_are_refused_by_the_name_of_the_preset(tmp_path: Path) -> None:
    given = nets.quantized(nets.Residual)
    with pytest.raises(EngineError, match="take preset tensorrt") as error:
        check(given.model.program)
    assert "\n" not in str(error.value)
    with pytest.raises(EngineError, match="preset tensorrt"):
        write(given, tmp_path / "model.tensorrt.onnx")
    assert not list(tmp_path.iterdir())


def test_a_plan_is_refused_before_anything_is_calibrated() -> None:
    from engine.planning.layer import Layer

    layer = Layer("conv", "Conv2d", "conv", 100, (8, 3, 3, 3), CONVOLUTION)
    recipe = Recipe.make(model="simplecnn", export=["tensorrt-onnx"])
    assert "preset tensorrt" in str(refuses(None, recipe, None))
    assert "activations of conv" in str(refuses(None, recipe, plan((layer,), "w8a8")))
    asked = Recipe.make(model="simplecnn", preset="tensorrt", export=["tensorrt-onnx"])
    assert refuses(None, asked, None) is None and refuses(None, asked, plan((layer,), "tensorrt")) is None
    rules = (Rule("*", LayerSpec(WeightSpec(8), ActivationSpec(8, symmetric=True))),)
    assert refuses(None, recipe, plan((layer,), "default", rules)) is None


def test_the_command_has_a_profile_of_batches() -> None:
    made = build(given_of(nets.Residual))
    assert command("model.tensorrt.onnx", made.inputs) == (
        "trtexec --onnx=model.tensorrt.onnx --stronglyTyped --minShapes=images:1x3x16x16 --optShapes=images:8x3x16x16 "
        "--maxShapes=images:32x3x16x16 --saveEngine=model.tensorrt.engine"
    )
