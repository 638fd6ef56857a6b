"""The formats that a quantized decoder can be written in. Torch-free; a new format is one entry here and one in ``exports._MAKERS``."""

from __future__ import annotations

from engine.errors import UsageError, nearest
from engine.export.registry import Format

FORMATS = {
    entry.name: entry
    for entry in (
        Format("safetensors", "engine.lowering.modules.artifact", ("model.safetensors",), "qtui"),
        Format(
            "onnx", "engine.export.onnx.decoder_file", ("model.onnx",), "ONNX Runtime", ("onnx",), ("onnxruntime",), ("model.onnx.data",)
        ),
        Format(
            "compressed-tensors", "engine.export.compressed_tensors", ("compressed-tensors",), "transformers", (), ("compressed_tensors",)
        ),
    )
}


def find(name: str) -> Format:
    """Raises UsageError with the nearest names."""
    if name not in FORMATS:
        raise UsageError(f"export format {name!r} is not known for language models: {nearest(name, tuple(FORMATS))}")
    return FORMATS[name]
