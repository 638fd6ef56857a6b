"""What a graph node is, however it was written: ``F.relu``, ``torch.relu``, ``x.relu()`` and ``nn.ReLU`` are all "relu"."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# What an integer kernel may compute before it rounds.
IN_KERNELS = ("relu", "relu6", "hardswish", "silu", "gelu", "gelu_tanh", "sigmoid", "hardsigmoid", "tanh", "mish")

# Methods that tell the shape of a tensor, whatever it holds.
SIZES = ("size", "dim", "ndimension", "numel", "nelement")

_MODULES: dict[type[nn.Module], str] = {
    **dict.fromkeys(CONVOLUTIONS, "conv"),
    **dict.fromkeys(TRANSPOSED, "conv_transpose"),
    **dict.fromkeys(BATCH_NORMS, "bn"),
    nn.Linear: "linear",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Tanh: "tanh",
    nn.Mish: "mish",
    nn.MaxPool2d: "max_pool",
    nn.AvgPool2d: "avg_pool",
    nn.AdaptiveAvgPool2d: "adaptive_avg_pool",
    nn.Flatten: "reshape",
    **dict.fromkeys((nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), "shuffle"),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), "identity"),
}

_FUNCTIONS: dict[Callable[..., Any], str] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_), "relu"),
    F.relu6: "relu6",
    F.hardswish: "hardswish",
    F.silu: "silu",
    **dict.fromkeys((torch.sigmoid, torch.sigmoid_, F.sigmoid), "sigmoid"),
    F.hardsigmoid: "hardsigmoid",
    **dict.fromkeys((torch.tanh, torch.tanh_, F.tanh), "tanh"),
    F.mish: "mish",
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, torch.multiply), "mul"),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), "add"),
    **dict.fromkeys(
        (torch.flatten, torch.unflatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.permute, torch.transpose), "reshape"
    ),
    F.max_pool2d: "max_pool",
    torch.max_pool2d: "max_pool",
    F.avg_pool2d: "avg_pool",
    F.adaptive_avg_pool2d: "adaptive_avg_pool",
    torch.mean: "mean",
    **dict.fromkeys((torch.cat, torch.concat), "cat"),
    **dict.fromkeys((F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle), "shuffle"),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), "functional_conv"),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), "functional_transposed"),
    F.linear: "functional_linear",
}

_IN_PLACE = tuple(
    getattr(operator, f"i{name}")
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift", "matmul")
)
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)

_METHODS: dict[str, str] = {
    **dict.fromkeys(("relu", "relu_"), "relu"),
    **dict.fromkeys(("add", "add_"), "add"),
    **dict.fromkeys(("mul", "mul_", "multiply"), "mul"),
    **dict.fromkeys(("sigmoid", "sigmoid_"), "sigmoid"),
    **dict.fromkeys(("tanh", "tanh_"), "tanh"),
    **dict.fromkeys(("flatten", "reshape", "view", "squeeze", "unsqueeze", "permute", "transpose"), "reshape"),
    **dict.fromkeys(("contiguous", "clone", "detach"), "identity"),
    "mean": "mean",
}


def is_foreign(function: Any) -> bool:
    """Whether a called function is neither torch's nor Python's own: fx keeps such calls whole where their module asks for it."""
    module = str(getattr(function, "__module__", None) or "torch")
    return module.partition(".")[0] not in ("torch", "_operator", "builtins", "math") and callable(function)


def does_nothing(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call returns its first argument: stochastic depth drops whole branches, and in training alone."""
    given = dict(zip(("input", "p", "mode", "training"), args, strict=False)) | dict(kwargs)
    return getattr(function, "__name__", "") == "stochastic_depth" and given.get("training", True) is False


def changes_a_part(method: str, args: tuple[Any, ...]) -> bool:
    """Whether a method works in place on what was taken out of a larger tensor: the graph would not see the tensor change."""
    node = getattr(args[0], "node", None) if args else None
    in_place = method.endswith("_") and not method.endswith("__")
    return in_place and isinstance(node, fx.Node) and node.op == "call_function" and node.target is operator.getitem


def weights_in(module: nn.Module) -> int:
    """How many weights the convolutions and linear layers in ``module`` have."""
    layers = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
    return sum({id(part): part.weight.numel() for part in module.modules() if isinstance(part, layers)}.values())


def module_of(node: fx.Node) -> nn.Module | None:
    """The module that a ``call_module`` node calls, else None."""
    owner = node.graph.owning_module
    return owner.get_submodule(str(node.target)) if node.op == "call_module" and owner is not None else None


def attribute(gm: fx.GraphModule, path: object) -> Any:
    """The parameter, buffer or constant of ``gm`` at ``path``, which a ``get_attr`` node names as its target."""
    owner, _, name = str(path).rpartition(".")
    return getattr(gm.get_submodule(owner), name)


def reads_below(gm: fx.GraphModule, path: str, own: Sequence[object] = ()) -> bool:
    """Whether another node of the graph than ``own`` calls or reads the module at ``path``, or what it holds."""
    return any(n.op in ("call_module", "get_attr") and f"{n.target}.".startswith(f"{path}.") and n not in own for n in gm.graph.nodes)


def in_place(node: fx.Node) -> bool:
    """Whether an operation changes the tensor that it reads first."""
    if node.kwargs.get("inplace"):
        return True
    if node.op == "call_module":
        return bool(getattr(module_of(node), "inplace", False))
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or (node.target in _IN_PLACE)


def source(node: fx.Node) -> fx.Node | None:
    """The node that an operation of one input reads, however it was passed."""
    given = node.args[0] if node.args else node.kwargs.get("input")
    return given if isinstance(given, fx.Node) else None


def kind(node: fx.Node) -> str:
    """The operation's name, or ``placeholder``, ``output``, ``get_attr``, ``other``."""
    if node.op in ("placeholder", "output", "get_attr"):
        return node.op
    if (approximate := _gelu(node)) is not None:
        return "gelu" if approximate == "none" else "gelu_tanh"
    if node.op == "call_module":
        return _MODULES.get(type(module_of(node)), "other")  # type: ignore[arg-type]
    if node.op == "call_method":
        return _METHODS.get(str(node.target), "other")
    if node.target is F.pad:
        return "pad" if pad_mode(node) else "other"
    if node.target is operator.getitem:
        # Taking one of a tuple of tensors moves no values of a tensor.
        read = source(node)
        return "slice" if read is not None and "dtype" in read.meta else "other"
    if node.target in _DROPOUTS:
        return "identity" if not _argument(node, 2, "training", True) else "other"
    return _FUNCTIONS.get(node.target, "other")  # type: ignore[arg-type]


def _gelu(node: fx.Node) -> str | None:
    """How a GELU is approximated; None for what is none."""
    if node.op == "call_module":
        module = module_of(node)
        return module.approximate if type(module) is nn.GELU else None
    return str(node.kwargs.get("approximate", "none")) if node.op == "call_function" and node.target is F.gelu else None


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def pad_mode(node: fx.Node) -> str | None:
    """How a call of ``F.pad`` fills, by zeros (``constant``) or by values that are there (``reflect``, ``replicate``, ``circular``); None
    where it fills with another number."""
    mode = _argument(node, 2, "mode", "constant")
    return str(mode) if mode != "constant" or not _argument(node, 3, "value", None) else None


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """The input nodes that are tensors (sizes and other numbers are left out)."""
    return [n for n in node.all_input_nodes if "dtype" in n.meta]
