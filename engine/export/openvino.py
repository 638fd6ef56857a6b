"""OpenVINO IR (``model.xml`` and ``model.bin``), made from the same program as the ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, one_line
from engine.export.base import ExportContext, Runner, program_runner
from engine.export.onnx.file import about, build, check_ranks, hold
from engine.export.placing import in_a_child

TRIAL = """
import sys, numpy, openvino
compiled = openvino.Core().compile_model(sys.argv[1], "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"})
compiled([
    numpy.zeros([2 if size.is_dynamic else size.get_length() for size in x.partial_shape], x.element_type.to_dtype())
    for x in compiled.inputs
])
"""
# Read by the core itself: the converter of the command line reports its use over the network. What was written is read again, since
# the writer says nothing where the disk is full.
_WRITE = """
import sys, openvino
source, path, name = sys.argv[1:]
core = openvino.Core()
model = core.read_model(source)
model.set_rt_info(name, "qtui")
openvino.save_model(model, path, compress_to_fp16=False)
core.read_model(path)
"""


def write(context: ExportContext, path: Path) -> str:
    """OpenVINO's kernels add before they round, as torch's do, so the program is written as it is."""
    between = path.with_suffix(".onnx")
    proto = build(context.model, context, "numbers")
    between.write_bytes(proto.SerializeToString())
    try:
        in_a_child(_WRITE, str(between), str(path), context.name)
    except EngineError as error:
        raise EngineError(f"OpenVINO does not write {context.name} ({error})") from error
    finally:
        between.unlink(missing_ok=True)
    return about(context, proto)


def load(path: Path, context: ExportContext) -> Runner:
    """On the processor, for short times; float layers in float32, which on some processors is not the default."""
    import openvino

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": context.threads, "INFERENCE_PRECISION_HINT": "f32"}
    try:
        compiled = openvino.Core().compile_model(path, "CPU", hints)
        request = compiled.create_infer_request()
    except Exception as error:
        raise EngineError(f"{path} cannot be loaded by OpenVINO ({one_line(error, 160)}): export it again") from error
    check_ranks(path, context, [len(x.partial_shape) for x in compiled.inputs], len(compiled.outputs))
    results = range(len(compiled.outputs))

    def call(arrays: list[Any]) -> list[Tensor]:
        request.infer(arrays, share_inputs=True)
        # The next call overwrites the request's own tensors.
        return [torch.tensor(request.get_output_tensor(i).data) for i in results]

    return program_runner(context, f"openvino {openvino.__version__.partition('-')[0]}", hold, call, "CPU int8, the rest in f32")
