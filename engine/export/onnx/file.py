"""ONNX with QuantizeLinear and DequantizeLinear, opset 21, for ONNX Runtime and whatever else reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, one_line
from engine.export.base import ExportContext, Runner
from engine.export.onnx.steps import Bound, write_program
from engine.export.split import split
from engine.lowering.graph.runtime import QuantizedModel
from engine.tasks.base import Batch

TRIAL = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
images = session.get_inputs()[0]
session.run(None, {images.name: numpy.zeros([2, *images.shape[1:]], numpy.float32)})
"""


def write(context: ExportContext, path: Path) -> str:
    """Every convolution ends in integers here, also those that torch's kernels add to another value before they round: ONNX
    Runtime has integer convolutions of no other form."""
    path.write_bytes(build(split(context), context, "integers").SerializeToString())
    return ""


def build(model: QuantizedModel, context: ExportContext, bound: Bound) -> Any:
    """The checked ``ModelProto`` of a model's program."""
    written = write_program(model, context.images, bound)
    return written.graph.model(tuple(context.images.shape), written.logits, written.result, context.about)


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
    if len(inputs) != 1 or len(session.get_outputs()) != 1 or len(inputs[0].shape) != context.images.dim():
        raise EngineError(f"{path} does not take images and return logits: it is not an export of this run")
    name = inputs[0].name

    def call(x: Any) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x})[0])

    return Runner(f"onnxruntime {onnxruntime.__version__}", hold, call, "CPUExecutionProvider int8")


def hold(batch: Batch) -> Any:
    """The batch's one tensor, float32, as a contiguous array."""
    x: Tensor = batch.args[0]
    return x.to(torch.float32).contiguous().numpy()
