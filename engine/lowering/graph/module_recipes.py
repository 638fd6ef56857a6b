"""Modules of torch.nn as JSON, and back: a class by its name and what its constructor took, never code.

A module that holds others of torch.nn, as a ``TransformerEncoder`` or a ``Sequential`` does, is told with the recipes of those.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import nn

from engine.errors import EngineError
from engine.lowering.graph.calls import decode, encode

_DEPTH = 12
# Arguments that say whether there is a parameter, and those that a module keeps under another name.
_FLAGS = ("bias", "add_bias_kv")
_KEPT_AS = {("MultiheadAttention", "bias"): "in_proj_bias", ("MultiheadAttention", "add_bias_kv"): "bias_k"}
_UNUSED = ("device", "dtype", "inplace")
_RECURRENT = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
_ACTIVATIONS = {F.relu: "relu", F.gelu: "gelu"}


def module_recipe(module: nn.Module) -> dict[str, Any] | None:
    """Class and constructor arguments of a module of torch.nn, or None where it cannot be rebuilt from them."""
    name = type(module).__name__
    if getattr(nn, name, None) is not type(module) or module._forward_hooks or module._forward_pre_hooks:
        return None
    try:
        arguments, held = _SPECIAL.get(type(module), _by_signature)(module)
        recipe: dict[str, Any] = {"class": name, "arguments": {key: encode(value) for key, value in arguments.items()}}
        if held:
            recipe["modules"] = {key: None if inner is None else _inner(inner) for key, inner in held.items()}
        again = build_module(recipe)
    except Exception:
        return None
    same = {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in module.state_dict().items()}
    same = same and [type(m) for m in again.modules()] == [type(m) for m in module.modules()]
    return recipe if same else None


def build_module(recipe: Mapping[str, Any], depth: int = 0) -> nn.Module:
    """An uninitialised module of torch.nn in eval mode. Raises EngineError when the class is not one."""
    kind = getattr(nn, str(recipe["class"]), None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)) or depth > _DEPTH:
        raise EngineError(
            f"the file asks for the module {recipe['class']!r}, which torch.nn does not have: it is damaged or not made by qtui"
        )
    inner = recipe.get("modules", {})
    held = {name: None if given is None else build_module(given, depth + 1) for name, given in inner.items()}
    if kind is nn.Sequential:
        module: nn.Module = nn.Sequential()
        for name, part in held.items():
            module.add_module(name, part)
        return module.eval()
    module = kind(**{k: decode(v, str) for k, v in recipe["arguments"].items()}, **held)
    return module.eval()


Told = tuple[dict[str, Any], dict[str, nn.Module | None]]


def _inner(module: nn.Module) -> dict[str, Any]:
    found = module_recipe(module)
    if found is None:
        raise ValueError(f"{type(module).__name__} cannot be rebuilt")
    return found


def _by_signature(module: nn.Module) -> Told:
    """For each parameter of the constructor the attribute of its name."""
    arguments: dict[str, Any] = {}
    for parameter in list(inspect.signature(type(module).__init__).parameters.values())[1:]:
        hidden = parameter.name.startswith("_") or parameter.name in _UNUSED
        if hidden or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        name = _KEPT_AS.get((type(module).__name__, parameter.name), parameter.name)
        if not hasattr(module, name) and parameter.default is None:
            continue  # An older spelling of another argument.
        value = getattr(module, name)
        flag = parameter.name in _FLAGS and not isinstance(value, bool)
        arguments[parameter.name] = value is not None if flag else value
    return arguments, {}


def _recurrent(module: nn.Module) -> Told:
    more = ("nonlinearity",) if isinstance(module, nn.RNN) else ("proj_size",) if isinstance(module, nn.LSTM) else ()
    return {name: getattr(module, name) for name in (*_RECURRENT, *more)}, {}


def _transformer_layer(layer: Any) -> Told:
    return {
        "d_model": layer.self_attn.embed_dim, "nhead": layer.self_attn.num_heads, "dim_feedforward": layer.linear1.out_features,
        "dropout": layer.dropout.p, "activation": _ACTIVATIONS[layer.activation], "layer_norm_eps": layer.norm1.eps,
        "batch_first": layer.self_attn.batch_first, "norm_first": layer.norm_first, "bias": layer.linear1.bias is not None,
    }, {}  # fmt: skip


def _stack(argument: str, *more: str) -> Callable[[Any], Told]:
    """A number of equal layers and perhaps a normalization behind them."""

    def told(stack: Any) -> Told:
        first, *others = (_inner(layer) for layer in stack.layers)
        if any(other != first for other in others):
            raise ValueError("its layers differ")
        return {"num_layers": len(stack.layers), **{name: getattr(stack, name) for name in more}}, {
            argument: stack.layers[0], "norm": stack.norm,
        }  # fmt: skip

    return told


def _transformer(model: Any) -> Told:
    layer, _ = _transformer_layer(model.encoder.layers[0])
    return {**layer, "num_encoder_layers": len(model.encoder.layers), "num_decoder_layers": len(model.decoder.layers)}, {
        "custom_encoder": model.encoder, "custom_decoder": model.decoder,
    }  # fmt: skip


_SPECIAL: Mapping[type[nn.Module], Callable[[Any], Told]] = {
    **dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), _recurrent),
    **dict.fromkeys((nn.TransformerEncoderLayer, nn.TransformerDecoderLayer), _transformer_layer),
    nn.TransformerEncoder: _stack("encoder_layer", "enable_nested_tensor", "mask_check"),
    nn.TransformerDecoder: _stack("decoder_layer"),
    nn.Transformer: _transformer,
    nn.Sequential: lambda module: ({}, dict(module.named_children())),
}
