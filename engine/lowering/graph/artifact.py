"""``model.safetensors``: a program with its integers, scales and recipe, and the way back to a running model.

The file holds numbers and JSON, never code: steps may only name tensor operations of torch (``quant.calls``).
"""

from __future__ import annotations

import json
import math
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError, one_line
from engine.kernels.base import ACTIVATIONS
from engine.kernels.choose import kernels_for
from engine.kernels.probe import Machine, probe
from engine.lowering.files import NAME, file_of
from engine.lowering.graph.input_spec import taking
from engine.lowering.graph.program import Program, Step, call_from, sizes_from, steps_from
from engine.lowering.graph.runtime import QuantizedModel
from engine.numerics.qtensor import QTensor, from_tensors

SCHEMA = 1
_OTHERS = (".onnx", ".pt2", ".xml", ".bin", ".pt", ".pth")


def to_bytes(program: Program, recipe_yaml: str, isa: str) -> bytes:
    """The file's content. Weights are stored in their bits."""
    from safetensors.torch import save

    tensors, about = stored(program)
    header = {"schema": SCHEMA, **about, "recipe": recipe_yaml, "isa": isa}
    return save(tensors, {"qtui": json.dumps(header)})


def stored(program: Program, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a program, named after ``prefix``, and its part of the header."""
    tensors: dict[str, Tensor] = {f"{prefix}tensor/{name}": tensor.contiguous().clone() for name, tensor in program.tensors.items()}
    layers: dict[str, Any] = {}
    for name, weight in program.layers.items():
        layers[name] = weight.meta()
        tensors.update({f"{prefix}layer/{name}/{part}": tensor for part, tensor in weight.to_tensors().items()})
    return tensors, {"program": program.header(), "layers": layers}


def restored(tensors: Mapping[str, Tensor], about: Mapping[str, Any], prefix: str = "") -> Program:
    """The inverse of ``stored``. Raises ValueError, or what reading damaged JSON raises, for what is no program."""
    layers = {name: _weight(name, given, tensors, prefix) for name, given in about["layers"].items()}
    start = f"{prefix}tensor/"
    kept = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    held = about["program"]
    program = Program(steps_from(held), held["result"], layers, kept, sizes_from(held), *call_from(held))
    _check_flow(program)
    for step in program.steps:
        _check(step, program)
    return program


def read(path: Path) -> tuple[Program, dict[str, Any]]:
    """Program and header of a file. Raises EngineError for one that is missing, damaged or foreign."""
    tensors, header = content(path)
    if header.get("kind") == "islands":
        raise EngineError(f"{path} holds islands of a model: load it with engine.load_quantized(DIR, model=factory())")
    try:
        return restored(tensors, header), header
    except EngineError:
        raise
    except Exception as error:
        raise damaged(path, error) from error


def content(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file. Raises EngineError for one that is missing, damaged or foreign."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise EngineError(f"{path} does not exist: give the folder of a finished run")
    if path.suffix in _OTHERS:
        raise EngineError(f"{path} is not a {NAME}, the one file that this program loads: give the folder of a finished run")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("qtui", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError, struct.error) as error:
        raise EngineError(f"{path} is not a whole safetensors file ({one_line(error, 120)}): copy it again") from error
    if isinstance(header, dict) and header.get("kind") == "decoder":
        raise EngineError(f"{path} holds a language model: load it with engine.load_quantized")
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise EngineError(f"{path} was not written by this program (no header of schema {SCHEMA}): give the folder of a finished run")
    return tensors, header


def damaged(path: Path, error: Exception) -> EngineError:
    return EngineError(f"{path} is damaged ({type(error).__name__}: {one_line(error, 120)}): copy it again")


def _check(step: Step, program: Program) -> None:
    """Raises ValueError for what a kernel would take at its word: it reads past the end where sizes disagree."""
    for key in _GRIDS:
        if step.attrs.get(key) is not None:
            _check_grid(*step.attrs[key])
    read = {"quantize": 1, "dequantize": 1, "max_pool": 1, "affine": 1, "sum": 2, "gate": 2}
    count = {**read, "layer": 2 if step.attrs.get("accumulate") else 1}.get(step.op)
    if count is not None and len(step.inputs) != count:
        raise ValueError(f"step {step.output} reads {step.inputs}")
    if step.op == "max_pool":
        _check_sizes(step.output, step.attrs, 2, ("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
    if step.op == "affine":
        _check_affine(step, *(program.tensors[f"{step.attrs['norm']}.{part}"] for part in ("factor", "shift")))
    if step.op == "layer":
        _check_layer(step, program.layers[step.attrs["layer"]], program)


def _check_affine(step: Step, factor: Tensor, shift: Tensor) -> None:
    if factor.dim() != 1 or factor.shape != shift.shape or {factor.dtype, shift.dtype} != {torch.float32}:
        raise ValueError(f"step {step.output} multiplies by {tuple(factor.shape)} and adds {tuple(shift.shape)}")


def _check_layer(step: Step, weight: QTensor, program: Program) -> None:
    a, dims = step.attrs, weight.codes.dim() - 2
    if dims not in {"linear": (0,), "conv": (1, 2, 3)}[a["kind"]] or a["activation"] not in ACTIVATIONS:
        raise ValueError(f"{a['layer']} is no {a['kind']} of {dims} dimensions with {a['activation']}")
    bias = program.tensors[f"{a['layer']}.bias"] if a["bias"] else None
    if bias is not None and (bias.dtype != torch.float32 or bias.shape != weight.shape[:1]):
        raise ValueError(f"the bias of {a['layer']} is {bias.dtype} {tuple(bias.shape)}")
    if dims:
        _check_sizes(a["layer"], a["geometry"], dims, ("stride", 1), ("padding", 0), ("dilation", 1))
        _check_sizes(a["layer"], {"groups": [a["geometry"]["groups"]]}, 1, ("groups", 1))
        if len(weight.codes) % a["geometry"]["groups"]:
            raise ValueError(f"{a['layer']} has {a['geometry']['groups']} groups")


def _check_sizes(what: str, given: Mapping[str, Any], count: int, *least: tuple[str, int]) -> None:
    for key, low in least:
        if len(given[key]) != count or any(type(size) is not int or not low <= size < 65536 for size in given[key]):
            raise ValueError(f"{key} of {what} is {given[key]}")


def _check_flow(program: Program) -> None:
    """Raises ValueError unless each value is computed before it is read, but for the inputs: one, or those that the call names."""
    known: set[str] = set()
    outside: set[str] = set()
    for step in program.steps:
        outside |= set(step.inputs) - known
        if step.output in known | outside:
            raise ValueError(f"{step.output} is computed twice or too late")
        known.add(step.output)
    call = program.call
    named = outside if call is None else {given.value for given in call.inputs}
    if call is not None and len(named) < len(call.inputs):
        raise ValueError(f"two inputs are one value: {sorted(named)}")
    lacking = sorted({*(outside - named), *(set(program.results) - known - named), *(named & known)})
    if lacking or (call is None and len(outside) > 1):
        raise ValueError(f"nothing computes {', '.join(lacking or sorted(outside))}")


_GRIDS = ("grid", "input", "output", "accumulate", "left", "right")


def _check_grid(scale: float, zero_point: int, qmax: int) -> None:
    if not (math.isfinite(scale) and scale > 0 and 0 <= zero_point <= qmax <= 255):
        raise ValueError(f"a grid of step {scale}, zero point {zero_point} and {qmax} levels")


def _weight(name: str, about: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str) -> QTensor:
    places = {part: f"{prefix}layer/{name}/{part}" for part in ("values", "packed_values", "scale", "multiplier")}
    try:
        return from_tensors({part: tensors[place] for part, place in places.items() if place in tensors}, about)
    except EngineError as error:
        raise ValueError(f"layer {name}: {error}") from error


def load_network(directory: str | Path, model: nn.Module | None = None) -> QuantizedModel:
    """The quantized network of a finished run, on this machine's kernels.

    It is called as the fp32 model: with float32 images (N, C, H, W), normalized as the recipe says, or with what the task gave it. It
    returns what that returned, an object's fields as ``Outputs``, and raises EngineError for other inputs. ``model`` is the fp32 model
    and is needed only where some of its own modules stayed whole. Warns where the model was made for another instruction set and its
    activations would saturate here. Raises EngineError.
    """
    path = file_of(directory)
    program, header = read(path)
    machine = probe()
    warn_of(path, machine, header, [program])
    modules = dict(model.named_modules()) if model is not None else {}
    try:
        with torch.no_grad():
            found = QuantizedModel(program, kernels_for(machine), modules)
    except EngineError:
        raise
    except Exception as error:
        raise damaged(path, error) from error
    found.taking = taking(program)
    return found


def warn_of(path: Path, machine: Machine, header: Mapping[str, Any], programs: Sequence[Program]) -> None:
    """Warns where a file was made for another machine. Raises EngineError for a damaged one."""
    if told := _moved(machine, header.get("isa"), max((_widest(path, program) for program in programs), default=0)):
        warnings.warn(f"{path} was made on {told}: quantize the model here", stacklevel=3)


def _moved(machine: Machine, made_on: Any, widest: int) -> str | None:
    """What is to be known of a file on this machine, None where it is at home."""
    if machine.saturates and widest > 127:
        return f"{made_on} with 8-bit activations, whose sums saturate on this processor ({machine.instructions})"
    if isinstance(made_on, str) and machine.moved_from(made_on):
        narrow = " with 7-bit activations, where this processor multiplies 8" if widest <= 127 and machine.activation_bits == 8 else ""
        return f"{made_on}{narrow}; this processor has {machine.instructions}, so its figures and its speed can differ"
    return None


def _widest(path: Path, program: Program) -> int:
    """The largest integer that an activation can hold."""
    try:
        return max((int(step.attrs["input"][2]) for step in program.steps if step.op == "layer"), default=0)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise damaged(path, error) from error
