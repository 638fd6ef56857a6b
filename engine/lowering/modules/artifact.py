"""``model.safetensors`` of a decoder: packed integers with their scales, the float32 rest, and the way back to a model.

The file holds numbers and JSON, never code: the architecture is one that transformers brings, built from its configuration.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, one_line
from engine.kernels.matrix.kind import kind_of
from engine.lowering.modules.coded_cache import QuantizedCache
from engine.lowering.modules.header import KIND, SCHEMA, cache, header, matrix
from engine.lowering.modules.quantized import QuantizedDecoder, rest_names
from engine.lowering.modules.skeleton import empty, skeleton
from engine.models.anatomy import weight_of
from engine.models.transformers_load import quiet
from engine.numerics.qtensor import QTensor, from_tensors
from engine.numerics.quantized_matrix import QuantizedMatrix
from engine.reading import shards_of_index

# The tensors of a matrix, as ``QTensor.to_tensors`` names them.
PARTS = ("packed", "scale", "zero", "tensor_scale")
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
    file = opened(path)
    with told_of(path):
        return _decoder(file), dict(file.about)


@dataclass(frozen=True)
class DecoderFile:
    """A decoder's file, or its index and shards: the header, and the tensors, none of which is in memory."""

    path: Path
    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def separate(self) -> bool:
        """Whether experts are layers of their own."""
        return self.about.get("experts") == "separate"

    def names(self, part: str) -> list[str]:
        """The tensors of ``rest`` or ``buffer``, by their names in the model."""
        return [name.removeprefix(f"{part}/") for name in self.tensors if name.startswith(f"{part}/")]

    def weight(self, path: str) -> QTensor:
        """The integers of the matrix ``path``, which is tied to none before. Raises ValueError or EngineError for damaged ones."""
        places = {part: f"matrix/{path}/{part}" for part in PARTS}
        found = {part: self.tensors[name] for part, name in places.items() if name in self.tensors}
        weight = from_tensors(found, self.about["matrices"][path])
        if not torch.isfinite(weight.scale.to(torch.float32)).all():
            raise ValueError(f"scales of {path} are not finite")
        return weight

    def matrix(self, path: str) -> QuantizedMatrix:
        """The matrix ``path``. Raises as ``weight`` does."""
        entry = self.about["matrices"][path]
        return matrix(path, entry, self.weight(entry["tied"] or path))

    def cache(self) -> QuantizedCache | None:
        """What keys and values are kept in. Raises ValueError, KeyError or TypeError for what no run writes."""
        if self.about.get("cache") is None:
            return None
        spec, steps = cache(self.about["cache"]), {}
        for name in sorted(name for name in self.tensors if name.startswith("cache/") and name.endswith("/keys")):
            number = int(name.split("/")[1])
            pair = [self.tensors[f"cache/{number}/{part}"] for part in _CACHED]
            for step in pair:
                shaped = step.shape == () if spec.granularity == "per-tensor" else step.dim() == 3 and step.shape[1] == 1
                if step.dtype != torch.float32 or not shaped or not (torch.isfinite(step) & (step > 0)).all():
                    raise ValueError(f"the cache of layer {number} has steps of {step.dtype} {tuple(step.shape)}")
            steps[number] = (pair[0], pair[1])
        return QuantizedCache(spec, steps)


class Mapped(Mapping[str, Tensor]):
    """The tensors of safetensors files by name, each mapped when it is asked for. Raises as safetensors does."""

    def __init__(self, files: Sequence[Path]) -> None:
        from safetensors import safe_open

        self._files: dict[str, Path] = {}
        for path in files:
            with safe_open(path, "pt") as file:
                self._files.update(dict.fromkeys(file.keys(), path))

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import safe_open

        with safe_open(self._files[name], "pt") as file:
            found: Tensor = file.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Whatever goes wrong with what ``path`` holds, as one line."""
    try:
        with quiet():
            yield
    except EngineError as error:
        raise EngineError(f"{path}: {one_line(error, 240)}") from error
    except Exception as error:
        raise EngineError(f"{path} is damaged ({type(error).__name__}: {one_line(error, 120)}): copy it again") from error


def opened(path: Path) -> DecoderFile:
    """The file, or the index of several. Raises EngineError for what is missing, no whole safetensors file, or of another kind."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise EngineError(f"{path} does not exist: give the folder of a finished run")
    try:
        files = [path] if path.suffix != ".json" else shards_of_index(path)
        with safe_open(files[0], "pt") as file:
            about = json.loads((file.metadata() or {}).get("qtui", "null"))
        tensors = Mapped(files)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RecursionError, struct.error) as error:
        raise EngineError(f"{path} is not a whole safetensors file ({one_line(error, 120)}): copy it again") from error
    if not isinstance(about, dict) or about.get("schema") != SCHEMA or about.get("kind") != KIND:
        raise EngineError(f"{path}: it is no decoder's file of schema 1 that this program wrote: give the folder of a finished run")
    return DecoderFile(path, about, tensors)


def buffers(model: Any) -> Tensors:
    """The buffers that a state dictionary holds."""
    known = dict(model.named_parameters(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in known}


@torch.no_grad()
def _decoder(file: DecoderFile) -> QuantizedDecoder:
    matrices = dict(_checked_matrices(file, (shape := _skeleton(file))))
    rest = dict(_checked_rest(file, shape))
    coded = file.cache()
    twin = empty(file.about["config"], file.separate)
    for path, held in matrices.items():
        if held.tied is None:
            weight_of(twin.get_submodule(path)).copy_(held.weight.dequantize())
    places = {**dict(twin.named_parameters()), **buffers(twin)}
    for name, tensor in rest.items():
        places[name].copy_(tensor)
    return QuantizedDecoder(twin, matrices, coded)


def check(file: DecoderFile) -> None:
    """Judge all of a file, one tensor after the other: what ``read`` would refuse. Raises EngineError in one line."""
    with told_of(file.path):
        shape = _skeleton(file)
        for checked in (_checked_matrices(file, shape), _checked_rest(file, shape)):
            for _ in checked:
                pass


def _skeleton(file: DecoderFile) -> Any:
    return skeleton(file.about["config"], len(file.tensors), file.separate)


def _checked_matrices(file: DecoderFile, model: Any) -> Iterator[tuple[str, QuantizedMatrix]]:
    """Each matrix, once it is seen to be one of ``model``, which is on the meta device. What is tied shares the integers of the one
    before. Raises ValueError, or as reading does."""
    tied = {entry["tied"] for entry in file.about["matrices"].values()}
    shared: dict[str, QTensor] = {}
    for path, entry in file.about["matrices"].items():
        weight = shared.get(entry["tied"] or "")
        found = file.matrix(path) if weight is None else matrix(path, entry, weight)
        if path in tied:
            shared[path] = found.weight
        module = model.get_submodule(path)
        if kind_of(module) is None or weight_of(module).shape != found.weight.codes.shape:
            raise ValueError(f"{path} of {tuple(found.weight.codes.shape)} is no such matrix of {type(model).__name__}")
        if found.tied and module.weight is not model.get_submodule(found.tied).weight:
            raise ValueError(f"{path} is not tied to {found.tied}")
        yield path, found


def _checked_rest(file: DecoderFile, model: Any) -> Iterator[tuple[str, Tensor]]:
    """The float32 rest and the buffers, each in its shape. Raises ValueError for what is missing or too much."""
    rest, kept = file.names("rest"), file.names("buffer")
    known = {f"matrix/{path}/{part}" for path, entry in file.about["matrices"].items() if entry["tied"] is None for part in PARTS}
    coded = file.cache()
    known |= {f"cache/{number}/{part}" for number in (coded.steps if coded else ()) for part in _CACHED}
    if len(rest) + len(kept) + sum(name in known for name in file.tensors) != len(file.tensors):
        raise ValueError("it holds tensors of no part of the model")
    for wanted, there in ((set(rest_names(model, file.about["matrices"])), set(rest)), (set(buffers(model)), set(kept))):
        if wanted != there:
            raise ValueError(f"{sorted(wanted ^ there)[0]} is missing or too much")
    shapes = {**dict(model.named_parameters()), **buffers(model)}
    for part, names in (("rest", rest), ("buffer", kept)):
        for name in names:
            tensor = file.tensors[f"{part}/{name}"]
            if tensor.shape != shapes[name].shape or (part == "rest" and tensor.dtype != torch.float32):
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}")
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(f"{name} is not finite")
            yield name, tensor
