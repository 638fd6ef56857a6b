"""A decoder whose weights are not read: modules and buffers as they are to be, parameters that have shapes alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.errors import EngineError
from engine.models.anatomy import blocks_of
from engine.models.shards import BYTES, Shards
from engine.models.soundness import left_over
from engine.models.transformers_folder import AGAIN, Folder


@dataclass(frozen=True)
class Source:
    """``names`` maps a parameter of the model to the tensor of ``shards`` that it is read from."""

    shards: Shards
    names: dict[str, str]

    def read_into(self, model: nn.Module, wanted: Iterable[str]) -> None:
        """Give the parameters of ``model`` named ``wanted`` their weights, in float32; modules that share one share it after. Raises
        EngineError as ``Shards.read`` does."""
        holders = _holders(model)
        known = dict(model.named_parameters(remove_duplicate=False))
        asked = {self.names[name]: name for name in wanted}
        for stored, tensor in self.shards.read(asked):
            fresh = nn.Parameter(tensor, requires_grad=False)
            for module, name in holders[id(known[asked[stored]])]:
                module._parameters[name] = fresh


def forget(model: nn.Module) -> None:
    """Take the memory of ``model``'s parameters away: their shapes stay, what was shared stays shared."""
    for several in _holders(model).values():
        module, name = several[0]
        held = module._parameters[name]
        assert held is not None
        empty = nn.Parameter(held.detach().to("meta"), requires_grad=False)
        for holder, own in several:
            holder._parameters[own] = empty


def _holders(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append((module, name))
    return found


def unread(found: Folder, shards: Shards) -> tuple[Any, Source]:
    """The decoder of a folder in eval mode, and where its weights are read from. Raises EngineError for tensors that are missing, too
    many, of another shape or type, or under names that the model does not have."""
    model = _model(found)
    source = Source(shards, _names(model, found, shards))
    _read_buffers(model, found, shards)
    return model, source


def _read_buffers(model: Any, found: Folder, shards: Shards) -> None:
    """Those that files hold: few numbers, which stay in memory."""
    known = dict(model.named_parameters(remove_duplicate=False))
    prefix = f"{model.base_model_prefix}."
    for name, buffer in model.state_dict().items():
        if name in known:
            continue
        stored = next((other for other in (name, name.removeprefix(prefix)) if other in shards.tensors), None)
        if stored is None or shards.tensors[stored].shape != tuple(buffer.shape):
            raise EngineError(f"{found.path} has no tensor {name} of shape {tuple(buffer.shape)}: {AGAIN}")
        for _, tensor in shards.read([stored]):
            buffer.copy_(tensor)


def _model(found: Folder) -> Any:
    import transformers

    decoders: Any = transformers.AutoModelForCausalLM
    settings = transformers.AutoConfig.from_pretrained(found.path, trust_remote_code=False, local_files_only=True)
    with parameters_on_meta():
        try:
            model = decoders.from_config(settings, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False)
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            model = decoders.from_config(settings, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False)
    return model.requires_grad_(False).eval()


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Parameters that modules are given go to the meta device, buffers stay what they are: models compute some of them as they are
    built, and no file holds these."""
    own = nn.Module.register_parameter

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        own(self, name, param if param is None or param.is_meta else nn.Parameter(param.detach().to("meta"), param.requires_grad))

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = own  # type: ignore[method-assign]


def _names(model: Any, found: Folder, shards: Shards) -> dict[str, str]:
    """The tensor of each parameter. Heads of older files lack the model's own name in front, and tied ones may be left out."""
    prefix = f"{model.base_model_prefix}."
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    names: dict[str, str] = {}
    shapes = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    for several in places.values():
        candidates = [stored for name in several for stored in (name, name.removeprefix(prefix)) if stored in shards.tensors]
        if not candidates:
            raise EngineError(
                f"{found.path} has no tensor {several[0]}: {AGAIN}; where transformers renames the tensors as it loads, "
                "give stream: false in a recipe to read the model whole"
            )
        stored = shards.tensors[candidates[0]]
        if tuple(shapes[several[0]]) != stored.shape:
            raise EngineError(
                f"{found.path}: {candidates[0]} has the shape {stored.shape} and config.json asks for {tuple(shapes[several[0]])}: {AGAIN}"
            )
        if stored.dtype not in BYTES:
            raise EngineError(f"{found.path} holds {candidates[0]} as {stored.dtype}, not as floating-point weights")
        names.update(dict.fromkeys(several, candidates[0]))
    used = {*names.values(), *names}
    spare = [name for name in shards.tensors if name not in used and f"{prefix}{name}" not in used]
    if told := left_over(model, spare):
        raise EngineError(f"{found.path} holds {told}, which its config.json has no place for: they belong to different models")
    return names


def in_block(model: nn.Module, number: int) -> list[str]:
    """The parameters of block ``number``, by their names in ``model``."""
    path = f"{blocks_of(model)[0]}.{number}."
    return [name for name, _ in model.named_parameters() if name.startswith(path)]


def outside(model: nn.Module) -> list[str]:
    """The parameters outside of the blocks, those that are shared once."""
    inside = re.compile(rf"{re.escape(blocks_of(model)[0])}\.\d+\.")
    return [name for name, _ in model.named_parameters() if not inside.match(name)]
