"""ONNX with QuantizeLinear and DequantizeLinear, opset 21, for ONNX Runtime and whatever else reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, one_line
from engine.export.base import Given, Runner
from engine.export.onnx.steps import Bound, write_program
from engine.export.split import split
from engine.lowering.graph.runtime import QuantizedModel

TRIAL = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
images = session.get_inputs()[0]
session.run(None, {images.name: numpy.zeros([2, *images.shape[1:]], numpy.float32)})
"""


def write(given: Given, path: Path) -> None:
    """Every convolution ends in integers here, also those that torch's kernels add to another value before they round: ONNX
    Runtime has integer convolutions of no other form."""
    path.write_bytes(build(split(given), given, "integers").SerializeToString())


def build(model: QuantizedModel, given: Given, bound: Bound) -> Any:
    """The checked ``ModelProto`` of a model's program."""
    written = write_program(model, given.images, bound)
    about = {"qtui": given.name, "recipe": given.recipe, "isa": given.isa}
    return written.graph.model(tuple(given.images.shape), written.logits, written.result, about)


def load(path: Path, given: Given, threads: int) -> Runner:
    """In ONNX Runtime on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"{path} cannot be loaded by ONNX Runtime ({one_line(error, 160)}): export it again") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(session.get_outputs()) != 1 or len(inputs[0].shape) != given.images.dim():
        raise EngineError(f"{path} does not take images and return logits: it is not an export of this run")
    name = inputs[0].name
    return Runner(f"onnxruntime {onnxruntime.__version__}", hold, lambda x: session.run(None, {name: x})[0], "CPUExecutionProvider int8")


def hold(x: Tensor) -> Any:
    """float32 images as a contiguous array."""
    return x.to(torch.float32).contiguous().numpy()
