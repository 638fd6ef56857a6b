"""OpenVINO IR (``model.xml`` and ``model.bin``), made from the same program as the ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import EngineError, one_line
from engine.export.base import Given, Runner
from engine.export.onnx.file import build, check_ranks, hold

TRIAL = """
import sys, numpy, openvino
compiled = openvino.Core().compile_model(sys.argv[1], "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"})
compiled([
    numpy.zeros([2 if size.is_dynamic else size.get_length() for size in x.partial_shape], x.element_type.to_dtype())
    for x in compiled.inputs
])
"""


def write(given: Given, path: Path) -> None:
    """OpenVINO's kernels add before they round, as torch's do, so the program is written as it is."""
    import openvino

    between = path.with_suffix(".onnx")
    between.write_bytes(build(given.model, given, "numbers").SerializeToString())
    try:
        # Read by the core itself: the converter of the command line reports its use over the network.
        model = openvino.Core().read_model(between)
        model.set_rt_info(given.name, "qtui")
        openvino.save_model(model, path, compress_to_fp16=False)
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"OpenVINO does not take the ONNX form of {given.name} ({one_line(error, 160)})") from error
    finally:
        between.unlink(missing_ok=True)


def load(path: Path, given: Given, threads: int) -> Runner:
    """On the processor, for short times; float layers in float32, which on some processors is not the default."""
    import openvino

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    try:
        compiled = openvino.Core().compile_model(path, "CPU", hints)
        request = compiled.create_infer_request()
    except Exception as error:
        raise EngineError(f"{path} cannot be loaded by OpenVINO ({one_line(error, 160)}): export it again") from error
    check_ranks(path, given, [len(x.partial_shape) for x in compiled.inputs], len(compiled.outputs))
    results = range(len(compiled.outputs))

    def run(arrays: list[Any]) -> Any:
        request.infer(arrays, share_inputs=True)
        # The next call overwrites the request's own tensors.
        arrays = [np.array(request.get_output_tensor(i).data) for i in results]
        return arrays if len(arrays) > 1 else arrays[0]

    return Runner(f"openvino {openvino.__version__.partition('-')[0]}", hold, run, "CPU int8, the rest in f32")
