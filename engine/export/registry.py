"""The formats that a quantized model can be written in. Torch-free; a new format is one module and one entry here.

A format's module has ``write(given, path)``, which makes the file at ``path`` (and those beside it that ``files`` names), and
``load(path, given, threads)``, which gives the ``Runner`` of the format's own runtime. Both raise EngineError in one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from engine.errors import UsageError, nearest


@dataclass(frozen=True)
class Format:
    """``files`` are the names in the run's folder, the first of them the one to load; ``optional`` those that large models have
    beside them. ``writes`` and ``runs`` are the packages that writing and running need beyond this program's own; ``title`` is the
    runtime's name."""

    name: str
    module: str
    files: tuple[str, ...]
    title: str
    writes: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def missing(self, packages: tuple[str, ...]) -> tuple[str, ...]:
        """Those of ``packages`` that are not installed."""
        return tuple(package for package in packages if find_spec(package) is None)


FORMATS = {
    entry.name: entry
    for entry in (
        Format("safetensors", "engine.export.safetensors", ("model.safetensors",), "qtui"),
        Format("onnx", "engine.export.onnx.file", ("model.onnx",), "ONNX Runtime", ("onnx",), ("onnxruntime",)),
        Format("openvino", "engine.export.openvino", ("model.xml", "model.bin"), "OpenVINO", ("onnx", "openvino"), ("openvino",)),
        Format("pt2", "engine.export.pt2", ("model.pt2",), "torch.export"),
    )
}


def find(name: str) -> Format:
    """Raises UsageError with the nearest names."""
    if name not in FORMATS:
        raise UsageError(f"export format {name!r} is not known: {nearest(name, tuple(FORMATS))}")
    return FORMATS[name]


def install(packages: tuple[str, ...]) -> str:
    """The command that installs ``packages``, which are named as they are imported."""
    return f"uv pip install {' '.join(packages).replace('_', '-')}"
