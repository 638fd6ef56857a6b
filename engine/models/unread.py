"""A decoder whose weights are not read: modules and buffers as they are to be, parameters that have shapes alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError
from engine.models.anatomy import blocks_of
from engine.models.shards import BYTES, Shards
from engine.models.soundness import left_over
from engine.models.transformers_folder import AGAIN, Folder

WHOLE = "give stream: false in a recipe to read it whole"


@dataclass(frozen=True)
class Source:
    """``names`` maps a parameter of the model to the tensor of ``shards`` that it is read from."""

    shards: Shards
    names: dict[str, str]

    def read_into(self, model: nn.Module, wanted: Iterable[str]) -> None:
        """Give the parameters of ``model`` named ``wanted`` their weights, in float32; modules that share one share it after. Raises
        EngineError as ``Shards.read`` does."""
        asked = {self.names[name]: name for name in wanted}
        put(model, ((asked[stored], tensor) for stored, tensor in self.shards.read(asked)))


def put(model: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Let the parameters of ``model`` of these names be these tensors; modules that share one share it after."""
    holders = _holders(model)
    known = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in tensors:
        fresh = nn.Parameter(tensor, requires_grad=False)
        for module, own in holders[id(known[name])]:
            module._parameters[own] = fresh


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
    stored = _stored(model, shards)
    source = Source(shards, _names(model, found, stored, shards))
    _read_buffers(model, found, stored, shards)
    return model, source


def _read_buffers(model: Any, found: Folder, stored: Mapping[str, str], shards: Shards) -> None:
    """Those that files hold: few numbers, which stay in memory."""
    known = dict(model.named_parameters(remove_duplicate=False))
    for name, buffer in model.state_dict().items():
        if name in known:
            continue
        if name not in stored or shards.tensors[stored[name]].shape != tuple(buffer.shape):
            raise EngineError(f"{found.path} has no tensor {name} of shape {tuple(buffer.shape)}: {AGAIN}")
        for _, tensor in shards.read([stored[name]]):
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


def _names(model: Any, found: Folder, stored: Mapping[str, str], shards: Shards) -> dict[str, str]:
    """The tensor of each parameter: of those that are tied one may be there alone. ``stored`` are the tensors by the model's names."""
    places: dict[int, list[str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
        shapes[name] = tuple(parameter.shape)
    names: dict[str, str] = {}
    for several in places.values():
        first = next((stored[name] for name in several if name in stored), None)
        if first is None:
            raise EngineError(f"{found.path} lacks {several[0]}, or has it in a form that only the whole model is read from: {WHOLE}")
        part = shards.tensors[first]
        if part.shape != shapes[several[0]]:
            raise EngineError(f"{found.path}: {first} has the shape {part.shape}, and config.json asks for {shapes[several[0]]}: {AGAIN}")
        if part.dtype not in BYTES:
            raise EngineError(f"{found.path} holds {first} as {part.dtype}, not as floating-point weights")
        names.update(dict.fromkeys(several, first))
    if told := left_over(model, [own for own in stored if own not in names]):
        raise EngineError(f"{found.path} holds {told}, which its config.json has no place for: they belong to different models")
    return names


def _stored(model: Any, shards: Shards) -> dict[str, str]:
    """The tensors of files by the names that ``model`` has for them: transformers renames some as it loads, and heads of older files
    lack the model's own prefix."""
    own = dict.fromkeys(model.state_dict())
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:
        return {name: name for name in shards.tensors}
    renamings = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    given: Any = dict.fromkeys(own, True)
    return {rename_source_key(name, renamings, [], model.base_model_prefix, given)[0]: name for name in shards.tensors}


def in_block(model: nn.Module, number: int) -> list[str]:
    """The parameters of block ``number``, by their names in ``model``."""
    path = f"{blocks_of(model)[0]}.{number}."
    return [name for name, _ in model.named_parameters() if name.startswith(path)]


def outside(model: nn.Module) -> list[str]:
    """The parameters outside of the blocks, those that are shared once."""
    inside = re.compile(rf"{re.escape(blocks_of(model)[0])}\.\d+\.")
    return [name for name, _ in model.named_parameters() if not inside.match(name)]
