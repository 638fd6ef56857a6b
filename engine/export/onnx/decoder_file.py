"""``model.onnx`` of a decoder: the graph of ``onnx_graph`` in one file, beyond 2 GB with its numbers in a file beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.export.base import ExportContext, Runner, decoder_runner
from engine.export.onnx.architecture import architecture
from engine.export.onnx.decoder_graph import build
from engine.export.onnx.decoder_matrices import note, per_token
from engine.kernels.matrix.kind import kind_of
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.lowering.modules.stepping import last
from engine.planning.plan import Plan
from engine.recipe.recipe import Recipe

# protobuf holds no message of 2 GiB.
LARGEST = 2**31 - 2**24
DATA = "model.onnx.data"
TRIAL = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
first, *others = session.get_inputs()
empty = {other.name: numpy.zeros([1, other.shape[1], 0, other.shape[3]], numpy.float32) for other in others}
session.run(None, {first.name: numpy.zeros([1, 2], numpy.int64), **empty})
"""


def refuses(model: Any, recipe: Recipe, plan: Plan | None) -> str | None:
    """Where no graph of the architecture is known here, or weights are no integers."""
    if plan is not None:
        formats = ((row.path, row.actual.weights.format) for row in plan.layers if row.actual.weights)
        other = next(((path, name) for path, name in formats if name), None)
        return other and f"its kernels have no weights in {other[1]}, which {other[0]} has: give compressed-tensors or safetensors instead"
    try:
        architecture(model)
    except EngineError as error:
        return f"{error}: leave it out"
    return None


def write(context: ExportContext, path: Path) -> str:
    return write_decoder(context.model, path, context.about)


def load(path: Path, context: ExportContext) -> Runner:
    """In ONNX Runtime on the processor."""
    from engine.export.onnx.decoder_run import OnnxDecoder

    model = OnnxDecoder(path, context.threads)
    integers = any(per_token(matrix) for matrix in context.model.matrices.values())
    return decoder_runner(model.label, "CPUExecutionProvider", model.step, last(model.step), model.note if integers else "")


def write_decoder(decoder: QuantizedDecoder, path: Path, about: Mapping[str, str], accuracy: int = 4) -> str:
    """Write the file; and, beyond 2 GB, ``model.onnx.data`` beside it. A note for a person of what differs from the decoder.

    Raises EngineError for what has no graph."""
    said = [note({name: matrix.weight for name, matrix in decoder.matrices.items() if not matrix.tied})]
    multiplied = [matrix for path, matrix in decoder.matrices.items() if kind_of(decoder.twin.get_submodule(path)) != "Embedding"]
    if accuracy == 4 and (blocks := sum(m.activations is not None and not per_token(m) for m in multiplied)):
        said.append(f"ONNX Runtime rounds what enters {blocks} matrices to 8 bits in blocks, whatever the recipe says of it")
    if decoder.cache is not None:
        said.append(f"its cache holds floats where {decoder.cache.spec} was measured")
    save(build(decoder, about, accuracy), path)
    return "; ".join(part for part in said if part)


def save(model: Any, path: Path, largest: int = LARGEST) -> None:
    import onnx

    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < largest:
        path.write_bytes(model.SerializeToString())
        return
    onnx.save_model(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=DATA, size_threshold=1024)
