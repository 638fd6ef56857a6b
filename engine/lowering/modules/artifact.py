"""``model.safetensors`` of a decoder: packed integers with their scales, the float32 rest, and the way back to a model.

The file holds numbers and JSON, never code: the architecture is one that transformers brings, built from its configuration.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, one_line
from engine.kernels.matrix.kind import kind_of
from engine.lowering.modules.coded_cache import QuantizedCache
from engine.lowering.modules.header import KIND, SCHEMA, cache, header, matrix
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.lowering.modules.skeleton import empty, skeleton
from engine.models.anatomy import weight_of
from engine.models.transformers_load import quiet
from engine.numerics.qtensor import QTensor, from_tensors
from engine.numerics.quantized_matrix import QuantizedMatrix

Tensors = dict[str, Tensor]
_CACHED = ("keys", "values")


def to_bytes(decoder: QuantizedDecoder, recipe_yaml: str, isa: str) -> bytes:
    """The file's content. A tied matrix and a tied tensor are stored once; ``recipe_yaml`` and ``isa`` are kept as they are."""
    from safetensors.torch import save

    tensors: Tensors = {}
    for path, held in decoder.matrices.items():
        if held.tied is None:
            tensors.update({f"matrix/{path}/{part}": tensor.contiguous() for part, tensor in held.weight.to_tensors().items()})
    tensors.update({f"rest/{name}": tensor.float().contiguous().clone() for name, tensor in decoder.rest().items()})
    tensors.update({f"buffer/{name}": tensor.contiguous().clone() for name, tensor in buffers(decoder.twin).items()})
    for number, steps in decoder.cache.steps.items() if decoder.cache is not None else ():
        tensors.update({f"cache/{number}/{name}": step.contiguous() for name, step in zip(_CACHED, steps, strict=True)})
    return save(tensors, {"qtui": json.dumps(header(decoder, recipe_yaml, isa))})


def read(path: Path) -> QuantizedDecoder:
    """Raises EngineError, in one line, for a file that is missing, damaged, foreign, or of a network that is no decoder."""
    return read_with_header(path)[0]


def read_with_header(path: Path) -> tuple[QuantizedDecoder, dict[str, Any]]:
    """The decoder, and the header with ``recipe``, ``isa`` and ``config``. Raises as ``read`` does."""
    about, tensors = opened(path)
    try:
        if about.get("schema") != SCHEMA or about.get("kind") != KIND:
            raise EngineError("it is no decoder's file of schema 1 that this program wrote: give the folder of a finished run")
        with quiet():
            return _decoder(about, tensors), about
    except EngineError as error:
        raise EngineError(f"{path}: {one_line(error, 240)}") from error
    except Exception as error:
        raise EngineError(f"{path} is damaged ({type(error).__name__}: {one_line(error, 120)}): copy it again") from error


def opened(path: Path) -> tuple[dict[str, Any], Tensors]:
    """Header, empty where there is none, and tensors. Raises EngineError for what is no whole safetensors file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise EngineError(f"{path} does not exist: give the folder of a finished run")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("qtui", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError, struct.error) as error:
        raise EngineError(f"{path} is not a whole safetensors file ({one_line(error, 120)}): copy it again") from error
    return about if isinstance(about, dict) else {}, tensors


def buffers(model: Any) -> Tensors:
    """The buffers that a state dictionary holds."""
    known = dict(model.named_parameters(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in known}


@torch.no_grad()
def _decoder(about: Mapping[str, Any], tensors: Tensors) -> QuantizedDecoder:
    separate = about.get("experts") == "separate"
    shape = skeleton(about["config"], len(tensors), separate)
    matrices = _matrices(about["matrices"], tensors)
    coded = _cache(about, tensors)
    rest = {name.removeprefix("rest/"): tensor for name, tensor in tensors.items() if name.startswith("rest/")}
    kept = {name.removeprefix("buffer/"): tensor for name, tensor in tensors.items() if name.startswith("buffer/")}
    if len(rest) + len(kept) != len(tensors):
        raise ValueError("it holds tensors of no part of the model")
    _check(QuantizedDecoder(shape, matrices), rest, kept)
    twin = empty(about["config"], separate)
    for path, held in matrices.items():
        if held.tied is None:
            weight_of(twin.get_submodule(path)).copy_(held.weight.dequantize())
    places = {**dict(twin.named_parameters()), **buffers(twin)}
    for name, tensor in {**rest, **kept}.items():
        places[name].copy_(tensor)
    return QuantizedDecoder(twin, matrices, coded)


def _cache(about: Mapping[str, Any], tensors: Tensors) -> QuantizedCache | None:
    if about.get("cache") is None:
        return None
    spec, steps = cache(about["cache"]), {}
    for name in sorted(name for name in tensors if name.startswith("cache/") and name.endswith("/keys")):
        number = int(name.split("/")[1])
        pair = [tensors.pop(f"cache/{number}/{part}") for part in _CACHED]
        for step in pair:
            shaped = step.shape == () if spec.granularity == "per-tensor" else step.dim() == 3 and step.shape[1] == 1
            if step.dtype != torch.float32 or not shaped or not (torch.isfinite(step) & (step > 0)).all():
                raise ValueError(f"the cache of layer {number} has steps of {step.dtype} {tuple(step.shape)}")
        steps[number] = (pair[0], pair[1])
    return QuantizedCache(spec, steps)


def _matrices(about: Mapping[str, Any], tensors: Tensors) -> dict[str, QuantizedMatrix]:
    weights: dict[str, QTensor] = {}
    for path, entry in about.items():
        if entry["tied"] is None:
            places = {part: f"matrix/{path}/{part}" for part in ("packed", "scale", "zero", "tensor_scale")}
            weights[path] = from_tensors({part: tensors.pop(name) for part, name in places.items() if name in tensors}, entry)
            if not torch.isfinite(weights[path].scale.to(torch.float32)).all():
                raise ValueError(f"scales of {path} are not finite")
    return {path: matrix(path, entry, weights[entry["tied"] or path]) for path, entry in about.items()}


def _check(decoder: QuantizedDecoder, rest: Tensors, kept: Tensors) -> None:
    """Raises ValueError unless the tensors are those of the model, each in its shape, before memory is taken for it."""
    model = decoder.twin
    for path, held in decoder.matrices.items():
        module = model.get_submodule(path)
        if kind_of(module) is None or weight_of(module).shape != held.weight.codes.shape:
            raise ValueError(f"{path} of {tuple(held.weight.codes.shape)} is no such matrix of {type(model).__name__}")
        if held.tied and module.weight is not model.get_submodule(held.tied).weight:
            raise ValueError(f"{path} is not tied to {held.tied}")
    if (wanted := set(decoder.rest())) != set(rest):
        raise ValueError(f"{sorted(wanted ^ set(rest))[0]} is missing or too much")
    if (wanted := set(buffers(model))) != set(kept):
        raise ValueError(f"{sorted(wanted ^ set(kept))[0]} is missing or too much")
    shapes = {**dict(model.named_parameters()), **buffers(model)}
    for name, tensor in {**rest, **kept}.items():
        if tensor.shape != shapes[name].shape or (name in rest and tensor.dtype != torch.float32):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is not finite")
