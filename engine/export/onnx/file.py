"""ONNX with QuantizeLinear and DequantizeLinear, opset 21, for ONNX Runtime and whatever else reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
kinds = {"tensor(float)": numpy.float32, "tensor(double)": numpy.float64, "tensor(int64)": numpy.int64, "tensor(int32)": numpy.int32,
         "tensor(bool)": numpy.bool_}
session.run(None, {x.name: numpy.zeros([2 if isinstance(n, str) else n for n in x.shape], kinds[x.type]) for x in session.get_inputs()})
"""


def write(given: Given, path: Path) -> None:
    """Every convolution ends in integers here, also those that torch's kernels add to another value before they round: ONNX
    Runtime has integer convolutions of no other form."""
    path.write_bytes(build(split(given), given, "integers").SerializeToString())


def build(model: QuantizedModel, given: Given, bound: Bound) -> Any:
    """The checked ``ModelProto`` of a model's program."""
    written = write_program(given, model, bound)
    about = {"qtui": given.name, "recipe": given.recipe, "isa": given.isa}
    return written.graph.model(written.inputs, written.outputs, written.results, about)


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
    check_ranks(path, given, [len(x.shape) for x in inputs], len(session.get_outputs()))
    names = [x.name for x in inputs]

    def run(arrays: list[Any]) -> Any:
        results = session.run(None, dict(zip(names, arrays, strict=True)))
        return results if len(results) > 1 else results[0]

    return Runner(f"onnxruntime {onnxruntime.__version__}", hold, run, "CPUExecutionProvider int8")


def check_ranks(path: Path, given: Given, ranks: list[int], results: int) -> None:
    """Raises EngineError for a file whose inputs have other numbers of dimensions, or that gives more or fewer results."""
    if ranks != [x.dim() for x in given.inputs] or results != len(given.model.program.results):
        what = "take images and return logits" if given.model.program.call is None else "take and return what the run's model does"
        raise EngineError(f"{path} does not {what}: it is not an export of this run")


def hold(*inputs: Tensor) -> list[Any]:
    """Inputs as contiguous arrays."""
    return [x.contiguous().numpy() for x in inputs]
