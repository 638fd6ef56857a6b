"""A compressed-tensors folder of a decoder that is larger than memory: its shards are written tensor by tensor from the run's own file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.errors import EngineError
from engine.export import compressed_tensors as folder_format
from engine.export.base import ExportContext, Runner
from engine.export.compressed_tensors import Form, Scheme, in_half, note_by_form, schemes_by_form, stored_matrix, write_beside
from engine.lowering.modules.artifact import DecoderFile, told_of
from engine.lowering.modules.by_block import unfilled
from engine.lowering.modules.header import activations_of
from engine.lowering.modules.streamed import Streamed
from engine.machine.memory import available
from engine.numerics.qtensor import scheme_of_meta
from engine.numerics.tensor_file import Pending, write_files

refuses = folder_format.refuses
# Bytes for each parameter of what transformers holds while it unpacks and runs the model in float32.
_HELD = 6


def write(context: ExportContext, path: Path) -> str:
    streamed: Streamed = context.model
    file = streamed.file
    with told_of(file.path):
        model = unfilled(file)
        forms = {name: _form(name, entry) for name, entry in file.about["matrices"].items()}
        schemes = schemes_by_form(model, forms)
        path.mkdir()
        write_files(path, _tensors(model, file, schemes), {"format": "pt"})
        write_beside(model, schemes, context.source, path)
        return note_by_form(model, forms, schemes)


def load(path: Path, context: ExportContext) -> Runner:
    """In transformers and compressed-tensors, which hold the whole model. Raises EngineError where it does not fit in memory."""
    streamed: Streamed = context.model
    needed = _HELD * sum(parameter.numel() for parameter in unfilled(streamed.file).parameters())
    room = available()
    if room is not None and needed > room:
        raise EngineError(f"transformers would need about {needed / 1e9:.0f} GB to read it back, and {room / 1e9:.0f} GB are free")
    return folder_format.load(path, context)


def _form(path: str, entry: dict[str, Any]) -> Form:
    return scheme_of_meta(entry), activations_of(path, entry)


def _tensors(model: Any, file: DecoderFile, schemes: dict[str, Scheme]) -> dict[str, Pending]:
    made: dict[str, Pending] = {}
    # Matrices of one form and shape are stored in tensors of one form and shape: one of them is looked at.
    looks: dict[tuple[object, ...], dict[str, Tensor]] = {}
    for path, scheme in schemes.items():
        entry = file.about["matrices"][path]
        alike = (scheme, scheme_of_meta(entry), tuple(entry["shape"]))
        if alike not in looks:
            looks[alike] = {name: tensor.to("meta") for name, tensor in stored_matrix(file.weight(path), scheme).items()}
        for name, tensor in looks[alike].items():
            made[f"{path}.{name}"] = Pending(tensor.dtype, tuple(tensor.shape), _part(file, path, scheme, name))
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name.removesuffix(".weight") in schemes or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        kind = tensor.half().dtype if tensor.is_floating_point() else tensor.dtype
        made[name] = Pending(kind, tuple(tensor.shape), _rest(file, name, tensor))
    return made


def _part(file: DecoderFile, path: str, scheme: Scheme, name: str) -> Callable[[], Tensor]:
    return lambda: stored_matrix(file.weight(path), scheme)[name]


def _rest(file: DecoderFile, name: str, place: Tensor) -> Callable[[], Tensor]:
    path = name.removesuffix(".weight")

    def read() -> Tensor:
        if path != name and path in file.about["matrices"]:
            return in_half(name, file.matrix(path).weight.dequantize())
        if f"rest/{name}" in file.tensors:
            return in_half(name, file.tensors[f"rest/{name}"])
        return in_half(name, place)

    return read
