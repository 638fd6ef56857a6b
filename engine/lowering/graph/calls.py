"""Functions and arguments of the graph as JSON, and back: only tensor operations, so that a file can never run code."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from engine.errors import EngineError
from engine.lowering.graph.kinds import module_of
from engine.lowering.graph.operations import by_name, name_of

_OPERATORS = (
    "add", "iadd", "sub", "isub", "mul", "imul", "truediv", "itruediv", "floordiv", "mod", "neg", "pow", "matmul",
    "getitem", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_", "invert", "xor", "pos", "abs", "lshift", "rshift",
    "iand", "ior", "ixor", "ipow", "ifloordiv", "imod", "imatmul", "ilshift", "irshift",
)  # fmt: skip
# Functions of tensors that torch's own list leaves out.
_MORE = {
    "torch": ("zeros", "ones", "full", "empty", "arange", "linspace", "eye", "tensor"),
    "F": (
        "relu_", "relu6", "elu_", "celu_", "selu_", "threshold_", "leaky_relu_", "hardtanh_", "hardswish", "hardsigmoid", "logsigmoid",
        "tanh", "sigmoid", "silu", "mish", "gelu", "softplus", "softshrink", "upsample", "upsample_nearest", "upsample_bilinear",
        "interpolate", "one_hot", "scaled_dot_product_attention",
    ),
}  # fmt: skip
_ATTRIBUTES = ("shape", "device", "dtype", "T", "mT", "H", "mH", "ndim", "real", "imag")
# Methods of tensors that torch's own list leaves out.
_MORE_METHODS = frozenset({"unflatten", "new_empty", "new_full", "new_ones", "new_zeros", "new_tensor"})


@lru_cache(maxsize=1)
def _by_name() -> dict[str, Callable[..., Any]]:
    """torch's own list of functions on tensors: it holds nothing that opens files or imports."""
    known = torch.overrides.get_overridable_functions()
    found: dict[str, Callable[..., Any]] = {f"operator.{name}": getattr(operator, name) for name in _OPERATORS}
    for prefix, space in (("torch", torch), ("F", F), ("fft", torch.fft)):
        names = {function: getattr(function, "__name__", "").removeprefix(f"{prefix}_") for function in known[space]}
        listed = [name for function, name in names.items() if getattr(space, name, 0) is function]
        found.update({f"{prefix}.{name}": getattr(space, name) for name in (*listed, *_MORE.get(prefix, ())) if hasattr(space, name)})
    return found


@lru_cache(maxsize=1)
def _names() -> dict[Any, str]:
    return {function: name for name, function in _by_name().items()}


@lru_cache(maxsize=1)
def _methods() -> frozenset[str]:
    known = torch.overrides.get_overridable_functions()[torch.Tensor]
    return frozenset(name for m in known if (name := getattr(m, "__name__", "")) and not name.startswith("_")) | _MORE_METHODS


def function_name(node: fx.Node) -> str:
    """``torch.flatten``, ``F.pad``, ``operator.getitem``, ``Tensor.view`` … Raises EngineError for any other function."""
    if node.op == "call_method" and node.target in _methods():
        return f"Tensor.{node.target}"
    if node.target is builtins.getattr and node.args[1] in _ATTRIBUTES:
        return f"attribute.{node.args[1]}"
    if node.op == "call_function" and node.target in _names():
        return _names()[node.target]
    if node.op == "call_function" and (registered := name_of(node.target)) is not None:
        return registered
    called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    raise EngineError(
        f"{node.name} calls {called}, which is not a tensor operation that can be stored: "
        "move the call into a module of its own, which stays whole"
    )


def function(name: str) -> Callable[..., Any]:
    """The inverse of ``function_name``. Raises EngineError for a name that is not on the list."""
    space, _, attribute = name.partition(".")
    if space == "Tensor" and attribute in _methods():
        return lambda self, *args, **kwargs: getattr(self, attribute)(*args, **kwargs)
    if space == "attribute" and attribute in _ATTRIBUTES:
        return lambda self, *_: getattr(self, attribute)
    if name in _by_name():
        return _by_name()[name]
    if (registered := by_name(name)) is not None:
        return registered
    raise EngineError(f"the file asks for {name!r}, which is not a tensor operation: it is damaged or not made by qtui")


def encode(value: Any, name_of: Callable[[fx.Node], str] = lambda node: node.name) -> Any:
    """Arguments to JSON; a node becomes ``{"$": name_of(node)}``. Raises EngineError for what has no JSON form."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, fx.Node):
        return {"$": name_of(value)}
    if isinstance(value, tuple | list):
        return {"tuple" if isinstance(value, tuple) else "list": [encode(v, name_of) for v in value]}
    if isinstance(value, slice):
        return {"slice": [encode(v, name_of) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, dict):
        return {"dict": {str(k): encode(v, name_of) for k, v in value.items()}}
    if isinstance(value, torch.dtype | torch.memory_format):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": "cpu"}
    if value is Ellipsis:
        return {"...": True}
    raise EngineError(f"an argument of type {type(value).__name__} cannot be stored")


def decode(value: Any, values: Callable[[str], Any]) -> Any:
    """The inverse of ``encode``; ``values`` gives what a name stands for."""
    if not isinstance(value, dict):
        return value
    ((key, inner),) = value.items()
    if key == "$":
        return values(inner)
    if key in ("tuple", "list"):
        return (tuple if key == "tuple" else list)(decode(v, values) for v in inner)
    if key == "slice":
        return slice(*(decode(v, values) for v in inner))
    if key == "dict":
        return {k: decode(v, values) for k, v in inner.items()}
    if key == "torch" and isinstance(getattr(torch, inner, None), torch.dtype | torch.memory_format):
        return getattr(torch, inner)
    if key == "device":
        return torch.device("cpu")
    if key == "...":
        return Ellipsis
    raise EngineError(f"the file holds an argument of kind {key!r}: it is damaged or not made by qtui")


def names_in(value: Any) -> list[str]:
    """The values that encoded arguments read, in order."""
    found: list[str] = []
    decode(value, found.append)
    return found


def function_call(node: fx.Node, name_of: Callable[[fx.Node], str]) -> dict[str, Any]:
    """``function``, ``args`` and ``kwargs`` of a node; a module that only moves or averages values as the function it is."""
    if node.op != "call_module":
        return {"function": function_name(node), "args": encode(node.args, name_of), "kwargs": encode(node.kwargs, name_of)}
    module = module_of(node)
    (source,) = node.args
    rest: tuple[Any, ...]
    if isinstance(module, nn.Flatten):
        name, rest = "torch.flatten", (module.start_dim, module.end_dim)
    elif isinstance(module, nn.PixelShuffle):
        name, rest = "torch.pixel_shuffle", (module.upscale_factor,)
    elif isinstance(module, nn.PixelUnshuffle):
        name, rest = "torch.pixel_unshuffle", (module.downscale_factor,)
    elif isinstance(module, nn.ChannelShuffle):
        name, rest = "torch.channel_shuffle", (module.groups,)
    elif isinstance(module, nn.AdaptiveAvgPool2d):
        name, rest = "F.adaptive_avg_pool2d", (module.output_size,)
    elif isinstance(module, nn.AvgPool2d):
        m = module
        name, rest = "F.avg_pool2d", (m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override)
    else:
        raise EngineError(f"{node.name}: {type(module).__name__} has no integer form")
    return {"function": name, "args": encode((source, *rest), name_of), "kwargs": {"dict": {}}}


def padding(attrs: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
    """What a stored call of ``F.pad`` adds on each side, the last dimension first, and how it fills."""
    given = dict(zip(("input", "pad", "mode"), decode(attrs["args"], lambda _: None), strict=False))
    given |= decode(attrs["kwargs"], lambda _: None)
    return tuple(given["pad"]), str(given.get("mode", "constant"))


_POOLING = ("kernel", "stride", "padding", "dilation", "ceil_mode")


def pooling(node: fx.Node) -> dict[str, Any]:
    """Kernel, stride, padding and dilation of a 2-D max pooling as pairs, and its ceil mode."""
    module = module_of(node)
    given: dict[str, Any]
    if isinstance(module, nn.MaxPool2d):
        given = dict(zip(_POOLING, (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode), strict=True))
    else:
        named = {("kernel" if key == "kernel_size" else key): value for key, value in node.kwargs.items()}
        given = {**dict(zip(_POOLING, node.args[1:], strict=False)), **named}
    defaults: dict[str, Any] = {"stride": given["kernel"], "padding": 0, "dilation": 1, "ceil_mode": False}
    full = {**defaults, **{k: v for k, v in given.items() if v is not None and k in _POOLING}}
    return {k: v if k == "ceil_mode" else _pair(v) for k, v in full.items()}


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))
