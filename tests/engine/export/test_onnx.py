"""ONNX files, against ONNX's own reference evaluator and ONNX Runtime."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import EngineError
from engine.export.base import ExportContext
from engine.export.onnx.file import build, load, write
from engine.export.split import split
from engine.numerics.sqnr import sqnr_db
from engine.recipe.spec import WeightSpec
from engine.tasks.base import Batch

onnx = pytest.importorskip("onnx")
SPECS = [(nets.W8, 8), (nets.W8, 7), (nets.W4, 4), (nets.GROUPS, 8), (nets.W8, None), (nets.GROUPS, None)]


def distance(wanted: Tensor, got: Any) -> float:
    """SQNR in dB."""
    error = (wanted - torch.as_tensor(got)).double()
    return sqnr_db(wanted.double().square().sum().item(), error.square().sum().item())


def reference(model: Any, x: Tensor) -> Tensor:
    from onnx.reference import ReferenceEvaluator

    return torch.as_tensor(ReferenceEvaluator(model).run(None, {"images": x.contiguous().numpy()})[0])


@pytest.mark.parametrize("bound", ["integers", "numbers"])
@pytest.mark.parametrize(("weights", "bits"), SPECS)
def test_the_reference_evaluator_gives_the_programs_outputs(weights: WeightSpec, bits: int | None, bound: Any) -> None:
    given = nets.quantized(nets.Residual, weights, bits)
    model = build(given.model, given, bound)
    x = torch.randn(5, 3, 16, 16)
    # A value in the middle between two steps may be rounded to either.
    assert distance(given.model(x), reference(model, x)) > (30 if bits == 4 else 38)


@pytest.mark.parametrize("make", nets.NETS, ids=lambda make: make.__name__)
@pytest.mark.parametrize(("weights", "bits"), [SPECS[0], SPECS[4]])
def test_every_kind_of_network_runs_for_any_number_of_images(make: Any, weights: WeightSpec, bits: int | None, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    given = nets.quantized(make, weights, bits)
    onnx.save(build(given.model, given, "integers"), path := tmp_path / "model.onnx")
    runner = load(path, given)
    for count in (1, 2, 5):
        x = torch.randn(count, 3, 16, 16)
        assert distance(given.model(x), runner.run(Batch((x,)))) > (32 if bits else 30)


class AnySize(nn.Module):
    """A network that gives a map: each of its sizes follows those of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.b(F.relu(self.a(x))), scale_factor=2.0, mode="nearest")


class OneSize(nn.Module):
    """A network whose linear layer reads every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)).flatten(1))


class Upsampled(AnySize):
    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(self.b(F.relu(self.a(x))), scale_factor=2.0, mode="bilinear", align_corners=False)
        return F.interpolate(y, scale_factor=3.0, mode="bilinear", align_corners=True)


@pytest.mark.parametrize(
    ("make", "result"),
    [
        (Upsampled, ["batch", 4, "logits_height", "logits_width"]),
        (nets.Residual, ["batch", 10]),
        (AnySize, ["batch", 4, "logits_height", "logits_width"]),
    ],
)
def test_images_of_other_sizes_are_taken_where_the_network_serves_them(make: Any, result: list[Any], tmp_path: Path) -> None:
    given = nets.quantized(make)
    write(given, path := tmp_path / "model.onnx")
    model = onnx.load(path)
    assert dimensions(model.graph.input[0]) == ["batch", 3, "height", "width"] and dimensions(model.graph.output[0]) == result
    assert {prop.key: prop.value for prop in model.metadata_props}["height"] == "16"
    pytest.importorskip("onnxruntime")
    runner = load(path, given)
    for size in ((16, 16), (24, 20), (33, 47)):
        x = torch.randn(2, 3, *size)
        assert distance(split(given)(x), runner.run(Batch((x,)))) > 38


def test_a_network_of_one_size_has_it_in_its_file(tmp_path: Path) -> None:
    write(nets.quantized(OneSize), path := tmp_path / "model.onnx")
    model = onnx.load(path)
    assert dimensions(model.graph.input[0]) == ["batch", 3, 16, 16] and dimensions(model.graph.output[0]) == ["batch", 5]


def dimensions(value: Any) -> list[int | str]:
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


def test_a_convolution_that_rounds_by_itself_stays_close() -> None:
    for make in (nets.Residual, nets.Mobile):
        given = nets.quantized(make)
        x = given.tensors[0]
        assert distance(given.model(x), split(given)(x)) > 25
    plain = nets.quantized(nets.Sequence1d)
    assert {s.op for s in split(plain).program.steps} >= {"layer"}


def test_onnx_runtime_uses_its_integer_kernels(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    for weights in (nets.W8, nets.GROUPS):
        given = nets.quantized(nets.Residual, weights)
        write(given, tmp_path / "model.onnx")
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 4
        onnxruntime.InferenceSession(tmp_path / "model.onnx", options)
        ops = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
        assert ops["QLinearConv"] == 3 and ops["QLinearAdd"] == 1 and ops["QGemm"] == 1 and not ops["Conv"]


def test_four_bits_are_stored_in_four(tmp_path: Path) -> None:
    given = nets.quantized(nets.Residual, nets.GROUPS)
    model = build(given.model, given, "integers")
    assert model.opset_import[0].version >= 21 and model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    assert onnx.TensorProto.INT4 in kinds and onnx.TensorProto.FLOAT not in kinds
    blocked = build(weight_only := nets.quantized(nets.Residual, nets.GROUPS, None).model, given, "integers")
    blocks = [a.i for node in blocked.graph.node for a in node.attribute if a.name == "block_size"]
    assert blocks == [16] and weight_only.program.layers


@pytest.mark.parametrize("weights", [nets.W8, nets.W4, nets.GROUPS, WeightSpec(8, "per-group", 16)])
@pytest.mark.parametrize("make", [nets.Residual, nets.Attention])
def test_arithmetic_of_small_weights_stays_in_floating_point(make: Any, weights: WeightSpec, tmp_path: Path) -> None:
    """ONNX Runtime's own matrix kernels would round what the layers read to 8 bits: 41 to 55 dB instead of 130 and more."""
    onnxruntime = pytest.importorskip("onnxruntime")
    given = nets.quantized(make, weights, None)
    write(given, tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options)
    got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: given.tensors[0].numpy()})[0])
    wanted = given.model(given.tensors[0])
    assert sqnr_db(float(wanted.square().sum()), float((got - wanted).square().sum())) > 110
    assert "MatMulNBits" not in {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}


def test_weights_are_stored_once() -> None:
    """torch repeats a linear layer's weights along the tokens to multiply by them."""
    given = nets.quantized(nets.Attention)
    sizes = Counter(tuple(tensor.dims) for tensor in build(given.model, given, "integers").graph.initializer)
    assert sizes[16, 16] == 4 and max(math.prod(dims) for dims in sizes) == 16 * 3 * 4 * 4


class Centred(nn.Module):
    """The mean of what a normalization has centred: its grid is far finer than that of the values."""

    def __init__(self, whole: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.last, self.whole = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.InstanceNorm2d(4),
            nn.Conv2d(4, 5, 1, bias=False),
            whole,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.whole(self.norm(self.conv(x)))).flatten(1)


@pytest.mark.parametrize("whole", [lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: x.mean((2, 3), keepdim=True)])
def test_the_mean_of_centred_values_runs(whole: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    given = nets.quantized(lambda: Centred(whole))
    write(given, tmp_path / "model.onnx")
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    # What is centred has no mean.
    assert load(tmp_path / "model.onnx", given).run(Batch((x,))).abs().max() < 1e-5


def test_an_unknown_operation_is_named_with_its_layer() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.lgamma(self.conv(x).abs() + 1).mean((2, 3)))

    given = nets.quantized(Odd)
    with pytest.raises(EngineError, match="lgamma uses lgamma, which has no ONNX form here"):
        build(given.model, given, "integers")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a" * 50])
def test_a_damaged_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    given = nets.quantized(nets.Sequence1d)
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(EngineError) as caught:
        load(tmp_path / "model.onnx", given)
    assert "cannot be loaded by ONNX Runtime" in str(caught.value) and "\n" not in str(caught.value)


def test_given_keeps_nothing_of_the_model_it_is_made_from() -> None:
    given: ExportContext = nets.quantized(nets.Residual)
    before = given.model(given.tensors[0])
    build(given.model, given, "integers")
    assert torch.equal(before, given.model(given.tensors[0]))
