"""A decoder of transformers from its configuration alone: no weights are drawn, and no code that a file brings is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from engine.errors import EngineError
from engine.models.experts import separate_experts

_DRAWS = frozenset({"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_",
                    "orthogonal_", "_no_grad_normal_", "_no_grad_uniform_", "_no_grad_trunc_normal_"})  # fmt: skip


def skeleton(config: Mapping[str, Any], tensors: int, separate: bool = False) -> Any:
    """The model that ``config`` describes, on the meta device: shapes without memory. ``tensors`` is how many a file holds; with
    ``separate`` experts are layers of their own.

    Raises EngineError for a configuration that transformers cannot read, that asks for code of its own, that is of no decoder, or
    that describes more layers than there are tensors.
    """
    settings = _settings(config)
    depth = getattr(settings, "num_hidden_layers", 0)
    if not isinstance(depth, int) or not 0 < depth <= tensors:
        raise EngineError(f"its configuration has {depth} blocks and the file {tensors} tensors: the file is damaged; copy it again")
    with torch.device("meta"):
        return _parted(_made(settings), separate)


def empty(config: Mapping[str, Any], separate: bool = False) -> Any:
    """The same model in memory, in float32 and eval mode; its parameters hold whatever was there, its buffers what they are to."""
    with _Undrawn():
        return _parted(_made(_settings(config)).eval(), separate)


def _parted(model: Any, separate: bool) -> Any:
    if separate:
        separate_experts(model)
    return model


def _settings(config: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    if config.get("auto_map"):
        raise EngineError("its configuration asks to run code that comes with it, which qtui never does")
    if not isinstance(kind, str) or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise EngineError(f"transformers knows no decoder of type {kind!r}: update transformers, or quantize another model")
    unsaid = ("model_type", "dtype", "torch_dtype")
    others = {key: _floats(value) for key, value in config.items() if key not in unsaid and "implementation" not in key}
    return AutoConfig.for_model(kind, **others)


def _floats(value: Any) -> Any:
    """``value`` with numbers that JSON has no word for in the place of what transformers writes for them."""
    if isinstance(value, Mapping):
        held = value.get("__float__")
        if isinstance(held, str) and len(value) == 1:
            return float(held)
        return {key: _floats(inner) for key, inner in value.items()}
    return [_floats(inner) for inner in value] if isinstance(value, list) else value


def _made(settings: Any) -> Any:
    """Attention is named: a configuration cannot ask for a kernel from the hub."""
    import transformers

    decoders: Any = transformers.AutoModelForCausalLM
    try:
        return decoders.from_config(settings, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return decoders.from_config(settings, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False)


class _Undrawn(TorchFunctionMode):
    """Random numbers are not drawn: the weights follow, and the caller's generator stays where it is."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__name__", "") in _DRAWS:
            return args[0] if args else (kwargs or {}).get("tensor")
        return function(*args, **(kwargs or {}))
