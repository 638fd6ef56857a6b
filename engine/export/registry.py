"""The formats that a quantized model can be written in. Torch-free; a new format is one module and one entry here.

A format's module has

- ``write(context, path) -> str``, which makes the file at ``path`` (and those beside it that ``files`` names) and returns a note for a
  person, empty where nothing differs from the model. A writer in C++ works in a child process or into memory
  (``engine.export.placing``): some of them end the process where the disk is full;
- ``load(path, context) -> Runner``, the file in the format's own runtime;

and may have

- ``refuses(model, recipe, plan) -> str | None``: why no file of it can be made of the fp32 ``model``. It is asked before any work with
  ``plan`` None, and again with each plan;
- ``TRIAL``, Python that loads the file that its first argument names: it runs in a child process before ``load``.

All raise EngineError in one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from engine.errors import UsageError, nearest

# Writes nothing, and says why there is no one graph to write.
_NO_GRAPH = "engine.export.islands"

# What the models of each lowering are called where a format is not for them.
MODELS = {
    "graph": "networks", "islands": "models that are lowered in islands", "modules": "language models",
    "streamed": "language models that are read block by block",
}  # fmt: skip


@dataclass(frozen=True)
class Format:
    """``files`` are the names in the run's folder, the first of them the one to load; ``optional`` those that large models have
    beside them. ``lowerings`` maps each lowering whose models it can hold to the module that writes them. ``writes`` and ``runs`` are
    the packages that writing and running need beyond this program's own; ``title`` is the runtime's name. ``presets`` make plans
    that it takes, where it refuses most others."""

    name: str
    files: tuple[str, ...]
    title: str
    lowerings: Mapping[str, str] = field(default_factory=dict)
    writes: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()

    def missing(self, packages: tuple[str, ...]) -> tuple[str, ...]:
        """Those of ``packages`` that are not installed."""
        return tuple(package for package in packages if find_spec(package) is None)

    def holds(self, lowering: str) -> bool:
        """Whether a file of a model of ``lowering`` can be made at all; where not, the module's ``write`` says why."""
        return self.lowerings[lowering] != _NO_GRAPH

    def module(self, lowering: str) -> Any:
        """The module that writes models of ``lowering``; it is imported now."""
        return import_module(self.lowerings[lowering])


FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format(
            "safetensors", ("model.safetensors",), "qtui",
            {
                "graph": "engine.export.safetensors", "islands": "engine.export.islands_safetensors",
                "modules": "engine.export.decoder_safetensors", "streamed": "engine.export.streamed_safetensors",
            },
        ),
        Format(
            "onnx", ("model.onnx",), "ONNX Runtime",
            {"graph": "engine.export.onnx.file", "islands": _NO_GRAPH, "modules": "engine.export.onnx.decoder_file"},
            ("onnx",), ("onnxruntime",), ("model.onnx.data",),
        ),
        Format(
            "openvino", ("model.xml", "model.bin"), "OpenVINO",
            {"graph": "engine.export.openvino", "islands": _NO_GRAPH},
            ("onnx", "openvino"), ("openvino",),
        ),
        Format("pt2", ("model.pt2",), "torch.export", {"graph": "engine.export.pt2", "islands": _NO_GRAPH}),
        Format(
            "compressed-tensors", ("compressed-tensors",), "transformers",
            {"modules": "engine.export.compressed_tensors", "streamed": "engine.export.streamed_compressed"},
            runs=("compressed_tensors",),
        ),
        Format(
            "tensorrt-onnx", ("model.tensorrt.onnx",), "ONNX Runtime", {"graph": "engine.export.onnx.tensorrt", "islands": _NO_GRAPH},
            ("onnx",), ("onnxruntime",), presets=("tensorrt",),
        ),
        Format(
            "gguf", ("model.gguf",), "transformers", {"modules": "engine.export.gguf"}, ("gguf",), ("gguf", "accelerate"),
            presets=("q4_k_m", "q8_0", "q6_k", "q5_k_m", "q4_0", "q3_k_m", "q2_k", "mxfp4"),
        ),
    )
}  # fmt: skip


def formats_of(lowering: str) -> dict[str, Format]:
    """The formats that hold models of ``lowering``, by name."""
    return {name: entry for name, entry in FORMATS.items() if lowering in entry.lowerings}


def find(name: str, lowering: str | None = None) -> Format:
    """The format of that name. Raises UsageError with the nearest names, also for one that holds no models of ``lowering``."""
    known = FORMATS if lowering is None else formats_of(lowering)
    if name in known:
        return known[name]
    kind = f" for {MODELS[lowering]}" if lowering in MODELS and (lowering != "graph" or name in FORMATS) else ""
    raise UsageError(f"export format {name!r} is not known{kind}: {nearest(name, tuple(known))}")


def choices() -> str:
    """The formats for a command line's help."""
    everywhere = sorted(formats_of("graph"))
    told, others = set(everywhere), []
    for lowering, words in MODELS.items():
        if only := sorted(name for name in formats_of(lowering) if name not in told):
            others.append(f"for {words} {', '.join(only)}")
            told.update(only)
    return f"{', '.join([*everywhere, *others])}; with commas between them"


def purposes() -> dict[str, str]:
    """The packages that formats need beyond this program's own, and what each is for: ``writes and runs OpenVINO exports``."""
    found: dict[str, dict[str, list[str]]] = {}
    for entry in FORMATS.values():
        for verb, packages in (("writes", entry.writes), ("runs", entry.runs)):
            for package in packages:
                found.setdefault(package, {}).setdefault(verb, []).append(_word(entry))
    return {package: _purpose(verbs) for package, verbs in found.items()}


def _purpose(verbs: Mapping[str, list[str]]) -> str:
    if len(verbs) == 2 and verbs["writes"] == verbs["runs"]:
        return f"writes and runs {' and '.join(verbs['writes'])} exports"
    return "; ".join(f"{verb} {' and '.join(names)} exports" for verb, names in verbs.items())


def _word(entry: Format) -> str:
    return {"onnx": "ONNX", "openvino": "OpenVINO", "gguf": "GGUF", "tensorrt-onnx": "TensorRT ONNX"}.get(entry.name, entry.name)


def install(packages: tuple[str, ...]) -> str:
    """The command that installs ``packages``, which are named as they are imported."""
    return f"uv pip install {' '.join(packages).replace('_', '-')}"
