"""What a trace replaces while it runs, and puts back: places where Python or torch would look into a value that only stands for one."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, fx

_METHODS = ("expand", "view", "reshape", "repeat", "tile", "new_zeros", "new_ones", "new_empty", "new_full")
_FACTORIES = ("zeros", "ones", "empty", "full", "arange", "linspace", "eye")


@dataclass
class Autocast:
    """Whether a forward asked for lower precision by itself."""

    used: bool = False


@contextmanager
def recording(proxy: type[fx.Proxy]) -> Iterator[None]:
    """Sizes that depend on the batch are taken by tensors that do not, by the functions that make tensors, by functions that
    TorchScript has compiled (their Python source is traced), and by einops (whose table of tensor types knows ``proxy``). transformers
    takes a mask (N, 1, T, T) that was made before for one."""
    with ExitStack() as stack:
        for name in _METHODS:
            stack.enter_context(_replaced(Tensor, name, _method(name)))
        for name in _FACTORIES:
            stack.enter_context(_replaced(torch, name, _factory(getattr(torch, name))))
        stack.enter_context(_replaced(torch.jit.ScriptFunction, "__call__", _scripted(torch.jit.ScriptFunction.__call__)))
        masks = sys.modules.get("transformers.masking_utils")
        if masks is not None and hasattr(masks, "_preprocess_mask_arguments"):
            stack.enter_context(_replaced(masks, "_preprocess_mask_arguments", _given_mask(masks._preprocess_mask_arguments)))
        einops = sys.modules.get("einops._backends")
        known = getattr(einops, "_type2backend", None)
        if einops is not None and isinstance(known, dict):
            known[proxy] = einops.get_backend(torch.empty(0))
            stack.callback(known.pop, proxy, None)
        yield


@contextmanager
def without_autocast() -> Iterator[Autocast]:
    """``autocast`` inside of a forward does nothing: what is quantized is the model in fp32."""
    found = Autocast()

    def enter(self: Any) -> Any:
        found.used |= bool(getattr(self, "_enabled", True))
        return self

    with _replaced(torch.autocast, "__enter__", enter), _replaced(torch.autocast, "__exit__", lambda self, *_: False):
        yield found


@contextmanager
def _replaced(owner: Any, name: str, new: Any) -> Iterator[None]:
    own = name in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _standing(args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Proxy | None:
    """The first of the arguments that stands for a value; torch itself finds it in lists of sizes, and not beside them."""
    parts = (*args, *kwargs.values())
    nested = [inner for part in parts if isinstance(part, tuple | list) for inner in part]
    return next((part for part in (*parts, *nested) if isinstance(part, fx.Proxy)), None)


def _method(name: str) -> Callable[..., Any]:
    plain = getattr(Tensor, name)

    @wraps(plain)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = _standing(args, kwargs)
        if found is None:
            return plain(self, *args, **kwargs)
        return found.tracer.create_proxy("call_method", name, (self, *args), kwargs)

    return method


def _factory(plain: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(plain)
    def factory(*args: Any, **kwargs: Any) -> Any:
        found = _standing(args, kwargs)
        return plain(*args, **kwargs) if found is None else found.tracer.create_proxy("call_function", plain, args, kwargs)

    return factory


def _scripted(plain: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        source = getattr(self, "_torchdynamo_inline", None)
        return plain(self, *args, **kwargs) if source is None or _standing(args, kwargs) is None else source(*args, **kwargs)

    return call


def _given_mask(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A mask of four dimensions is asked for by its type there, which what stands for one does not have."""
    bound = inspect.signature(plain)

    @wraps(plain)
    def prepared(*args: Any, **kwargs: Any) -> Any:
        given = bound.bind(*args, **kwargs)
        mask = given.arguments.get("attention_mask")
        if mask is None or _standing((mask,), {}) is None or mask.dim() != 4:
            return plain(*args, **kwargs)
        given.arguments["attention_mask"] = torch.empty(1, 1, 1, 1)
        found = plain(*given.args, **given.kwargs)
        return (found[0], mask, *found[2:])

    return prepared
