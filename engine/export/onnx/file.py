"""ONNX with QuantizeLinear and DequantizeLinear, opset 21, for ONNX Runtime and whatever else reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, one_line
from engine.export.base import ExportContext, Runner, of_one_item, program_runner
from engine.export.onnx.image_sizes import with_open_sizes
from engine.export.onnx.layer_parity import layer_parity
from engine.export.onnx.steps import Bound, of_lengths, write_program
from engine.export.split import split
from engine.lowering.graph.runtime import QuantizedModel

TRIAL = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
kinds = {"tensor(float)": numpy.float32, "tensor(double)": numpy.float64, "tensor(int64)": numpy.int64, "tensor(int32)": numpy.int32,
         "tensor(bool)": numpy.bool_, "tensor(uint8)": numpy.uint8, "tensor(int8)": numpy.int8, "tensor(int16)": numpy.int16,
         "tensor(float16)": numpy.float16}
known = {name: int(size) for name, size in session.get_modelmeta().custom_metadata_map.items() if name in ("height", "width")}
session.run(None, {x.name: numpy.zeros([known.get(n, 2) if isinstance(n, str) else n for n in x.shape], kinds[x.type])
                   for x in session.get_inputs()})
"""


def write(context: ExportContext, path: Path) -> str:
    """Every convolution ends in integers here, also those that torch's kernels add to another value before they round: ONNX
    Runtime has integer convolutions of no other form. Height and width of images are open where the network serves every size."""
    model = split(context)

    def built(of: ExportContext) -> Any:
        return build(model, of, "integers")

    proto = with_open_sizes(built(context), context, built)
    path.write_bytes(proto.SerializeToString())
    return about(context, proto)


def about(context: ExportContext, proto: Any) -> str:
    """What is to be said of a file: which sizes it holds that the model has not; empty where there are none."""
    return "; ".join(filter(None, (of_one_item(context), of_lengths(context, proto.graph.input))))


def build(model: QuantizedModel, context: ExportContext, bound: Bound) -> Any:
    """The checked ``ModelProto`` of a model's program."""
    written = write_program(context, model, bound)
    return written.graph.model(written.inputs, written.outputs, written.results, context.about)


def load(path: Path, context: ExportContext) -> Runner:
    """In ONNX Runtime on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = context.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"{path} cannot be loaded by ONNX Runtime ({one_line(error, 160)}): export it again") from error
    inputs = session.get_inputs()
    check_ranks(path, context, [len(x.shape) for x in inputs], len(session.get_outputs()))
    names = [x.name for x in inputs]

    def call(arrays: list[Any]) -> list[Tensor]:
        return [torch.from_numpy(x) for x in session.run(None, dict(zip(names, arrays, strict=True)))]

    runner = program_runner(context, f"onnxruntime {onnxruntime.__version__}", hold, call, "CPUExecutionProvider int8")
    return replace(runner, layers=lambda: layer_parity(path, context, options))


def check_ranks(path: Path, context: ExportContext, ranks: list[int], results: int) -> None:
    """Raises EngineError for a file whose inputs have other numbers of dimensions, or that gives more or fewer results."""
    program = context.model.program
    if ranks != [x.dim() for x in context.tensors] or results != len(program.results):
        what = "take images and return logits" if program.call is None else "take and return what the run's model does"
        raise EngineError(f"{path} does not {what}: it is not an export of this run")


def hold(inputs: tuple[Tensor, ...]) -> list[Any]:
    """Inputs as contiguous arrays."""
    return [x.contiguous().numpy() for x in inputs]
