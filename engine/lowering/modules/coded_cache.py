"""A decoder whose cache of keys and values holds codes: the same in one pass over a text and in writing token by token.

transformers' own cache is taken, with its kinds of layers (whole, sliding, beside recurrent states, shared); each layer that holds keys and
values is made to hold rows of bytes instead. What attention reads is always what the bytes stand for, of a token itself too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.lowering.modules.observe import batches
from engine.numerics.cache_codec import CacheCodec, largest_code
from engine.recipe.cache_spec import CacheSpec

# The steps of a layer's keys and values, float32 (heads, 1, width) or ().
Steps = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class QuantizedCache:
    """``steps`` of each layer by its number where they come from calibration."""

    spec: CacheSpec
    steps: Mapping[int, Steps] = field(default_factory=dict)

    def codecs(self, layer: int, keys: Tensor, values: Tensor) -> tuple[CacheCodec, CacheCodec]:
        """For a layer that is given ``keys`` and ``values`` (N, heads, tokens, width). Raises EngineError for a layer without steps."""
        if self.spec.calibrated and layer not in self.steps:
            raise EngineError(f"the cache of layer {layer} has no steps from calibration: quantize the model again")
        steps = self.steps.get(layer, (None, None))
        return CacheCodec(self.spec, keys.shape[-1], steps[0]), CacheCodec(self.spec, values.shape[-1], steps[1])


@dataclass(frozen=True)
class CacheSize:
    """Bytes that one more token of context takes, in codes with their scales and in float16. ``layers`` hold keys and values; of those
    that slide none are added once their window is full."""

    bytes_per_token: int
    float16_bytes_per_token: int
    layers: int
    sliding: int


class _Coded:
    """Before one of transformers' layers: rows of bytes are what it keeps."""

    # A subclass with a name of its own would take its parent's place in transformers' table.
    _layer_type = None
    form: QuantizedCache
    number: int
    recorded: dict[int, Steps] | None = None
    codec: tuple[CacheCodec, CacheCodec] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.recorded is not None:
            _record(self.recorded, self.number, key_states, value_states)
            found: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)  # type: ignore[misc]
            return found
        if self.codec is None:
            self.codec = self.form.codecs(self.number, key_states, value_states)
        keys, values = self.codec
        held = super().update(keys.encode(key_states), values.encode(value_states), *args, **kwargs)  # type: ignore[misc]
        return keys.decode(held[0], key_states.dtype), values.decode(held[1], value_states.dtype)


def _record(recorded: dict[int, Steps], number: int, *states: Tensor) -> None:
    """The largest magnitude of each channel of each head, (heads, 1, width)."""
    largest = [state.detach().float().abs().amax((0, 2))[:, None] for state in states]
    before = recorded.get(number)
    joined = largest if before is None else [torch.maximum(old, new) for old, new in zip(before, largest, strict=True)]
    recorded[number] = (joined[0], joined[1])


@lru_cache(maxsize=32)
def _coded(kind: type) -> Any:
    return type(f"Coded{kind.__name__}", (_Coded, kind), {"_layer_type": None})


def coded_cache(config: Any, form: QuantizedCache, recorded: dict[int, Steps] | None = None) -> Any:
    """transformers' cache for a model of ``config``, empty, in codes; with ``recorded`` in floats, whose largest magnitudes go there.
    ``holds_codes`` tells it from others."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache: Any = DynamicCache(config=config)
    if cache.layer_class_to_replicate is not None:
        raise EngineError(f"{type(config).__name__} does not say how many layers hold keys and values: leave the cache in floats")
    for number, layer in enumerate(cache.layers):
        if isinstance(layer, DynamicLayer):
            kind = _coded(type(layer))
            held = kind.__new__(kind)
            held.__dict__ |= {**layer.__dict__, "form": form, "number": number, "recorded": recorded}
            cache.layers[number] = held
    cache.holds_codes = True
    return cache


def attach(model: Any, form: QuantizedCache, recorded: dict[int, Steps] | None = None) -> Any:
    """From now on ``model`` reads keys and values from codes, whether a caller asks for a cache or not, until the handle that is returned
    is removed. A cache that a caller hands over empty, as ``generate`` does, is replaced. The model's calls raise EngineError for one
    that holds floats already."""

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        past = kwargs.get("past_key_values")
        if past is None or not getattr(past, "holds_codes", False):
            if past is not None and past.get_seq_length():
                raise EngineError("the cache that is handed over holds floats: begin the text anew, this model keeps codes")
            past = coded_cache(module.config, form, recorded)
        return args, {**kwargs, "past_key_values": past, "use_cache": True}

    model.cache_in_codes = True
    return model.register_forward_pre_hook(before, with_kwargs=True)


@contextmanager
def attached(model: Any, form: QuantizedCache | None, recorded: dict[int, Steps] | None = None) -> Iterator[None]:
    """``attach`` until the end of the block; nothing where ``form`` is None."""
    if form is None:
        yield
        return
    handle = attach(model, form, recorded)
    try:
        yield
    finally:
        handle.remove()
        del model.cache_in_codes


@torch.inference_mode()
def calibrated(model: Any, spec: CacheSpec, windows: Sequence[Tensor], batch: int, stop: StopToken) -> QuantizedCache:
    """The cache of ``spec`` with its steps, where it has any, from ``windows`` of token ids. Raises EngineError for a model that keeps no
    keys and values in transformers' cache, Cancelled on stop."""
    device = next(model.parameters()).device
    recorded: dict[int, Steps] = {}
    with attached(model, QuantizedCache(spec), recorded):
        for ids, _ in batches(windows if spec.calibrated else windows[:1], batch):
            stop.check()
            model(input_ids=ids.to(device), use_cache=True)
    if not recorded:
        raise EngineError(f"{type(model).__name__} keeps no keys and values in transformers' cache: leave the cache out of the recipe")
    if not spec.calibrated:
        return QuantizedCache(spec)
    return QuantizedCache(spec, {number: (_step(keys, spec), _step(values, spec)) for number, (keys, values) in recorded.items()})


def _step(largest: Tensor, spec: CacheSpec) -> Tensor:
    held = largest if spec.granularity == "per-channel" else largest.amax()
    # A channel that was always zero gets a step all the same.
    return (held / largest_code(spec)).clamp_min(1e-12).cpu().clone()


@torch.inference_mode()
def size_of(model: Any, form: QuantizedCache) -> CacheSize:
    """By what the cache holds after one token."""
    device = next(model.parameters()).device
    with attached(model, form):
        cache = model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device), use_cache=True).past_key_values
    coded = [layer for layer in cache.layers if isinstance(layer, _Coded) and layer.codec is not None]
    parts = [(held, codec.width) for layer in coded for held, codec in zip((layer.keys, layer.values), layer.codec, strict=True)]  # type: ignore[attr-defined, arg-type]
    return CacheSize(
        sum(held.numel() for held, _ in parts), sum(2 * held.shape[1] * width for held, width in parts), len(coded),
        sum(bool(getattr(layer, "is_sliding", False)) for layer in coded),
    )  # fmt: skip
