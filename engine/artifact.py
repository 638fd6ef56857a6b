"""``model.safetensors``: a program with its integers, scales and recipe, and the way back to a running model.

The file holds numbers and JSON, never code: steps may only name tensor operations of torch (``quant.calls``).
"""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError
from engine.kernels.choose import kernels_for
from engine.kernels.probe import probe
from engine.quant.numerics import QWeight, pack_nibbles, unpack_nibbles
from engine.quant.program import Program, steps_from
from engine.quant.runtime import QuantizedModel

NAME = "model.safetensors"
_SCHEMA = 1


def to_bytes(program: Program, recipe_yaml: str, isa: str) -> bytes:
    """The file's content. Weights of 4 bits or fewer are stored two to a byte."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {f"tensor/{name}": tensor.contiguous().clone() for name, tensor in program.tensors.items()}
    layers: dict[str, Any] = {}
    for name, weight in program.layers.items():
        layers[name] = {"bits": weight.bits, "shape": list(weight.values.shape), "group_size": weight.group_size}
        tensors[f"layer/{name}/values"] = pack_nibbles(weight.values) if weight.bits <= 4 else weight.values.contiguous()
        tensors[f"layer/{name}/scale"] = weight.scale.contiguous()
        if weight.multiplier is not None:
            tensors[f"layer/{name}/multiplier"] = weight.multiplier.contiguous()
    header = {"schema": _SCHEMA, "program": program.header(), "layers": layers, "recipe": recipe_yaml, "isa": isa}
    return save(tensors, {"qtui": json.dumps(header)})


def read(path: Path) -> tuple[Program, dict[str, Any]]:
    """Program and header of a file. Raises EngineError for one that is missing, damaged or foreign."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise EngineError(f"{path} does not exist: give the folder of a finished run")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("qtui", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise EngineError(f"{path} is not a whole safetensors file ({' '.join(str(error).split())[:120]}): copy it again") from error
    if not isinstance(header, dict) or header.get("schema") != _SCHEMA:
        raise EngineError(f"{path} was not written by this program (no header of schema {_SCHEMA}): give the folder of a finished run")
    try:
        layers = {name: _weight(name, about, tensors) for name, about in header["layers"].items()}
        kept = {name.removeprefix("tensor/"): tensor for name, tensor in tensors.items() if name.startswith("tensor/")}
        return Program(steps_from(header["program"]), header["program"]["result"], layers, kept), header
    except EngineError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> EngineError:
    return EngineError(f"{path} is damaged ({type(error).__name__}: {' '.join(str(error).split())[:120]}): copy it again")


def _weight(name: str, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QWeight:
    shape = tuple(int(n) for n in about["shape"])
    stored = tensors[f"layer/{name}/values"]
    values = unpack_nibbles(stored, shape) if about["bits"] <= 4 else stored.reshape(shape)
    return QWeight(
        values, tensors[f"layer/{name}/scale"], int(about["bits"]), tensors.get(f"layer/{name}/multiplier"), int(about["group_size"])
    )


def load_quantized(directory: str | Path, model: nn.Module | None = None) -> QuantizedModel:
    """The quantized model of a finished run, on this machine's kernels.

    It takes float32 images (N, C, H, W), normalized as the recipe says, and returns float32 logits. ``model`` is the
    fp32 model and is needed only where some of its own modules stayed whole. Warns where the model was made for another
    instruction set and its activations would saturate here. Raises EngineError.
    """
    path = Path(directory)
    program, header = read(path / NAME if path.is_dir() else path)
    machine = probe()
    if machine.saturates and _widest(path, program) > 127:
        warnings.warn(
            f"{path} was made on {header.get('isa')} with 8-bit activations; on this processor ({machine.isa}) their sums saturate: quantize it here",
            stacklevel=2,
        )
    modules = dict(model.named_modules()) if model is not None else {}
    try:
        with torch.no_grad():
            return QuantizedModel(program, kernels_for(machine), modules)
    except EngineError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error


def _widest(path: Path, program: Program) -> int:
    """The largest integer that an activation can hold."""
    try:
        return max((int(step.attrs["input"][2]) for step in program.steps if step.op == "layer"), default=0)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _damaged(path, error) from error
