"""Batch normalization in its other forms, made the module that it is, and what stands between it and its layer taken out."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engine.lowering.graph.kinds import BATCH_NORMS, IN_KERNELS, attribute, kind, module_of, reads_below, source

_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_BY_RANK = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_TAKEN_IN = ("bn", *IN_KERNELS)
_MULTIPLIES = (operator.mul, operator.imul, torch.mul)
_ADDS = (operator.add, operator.iadd, torch.add)


def remove_identities(gm: fx.GraphModule) -> None:
    """Take out, in place, what returns its input: ``nn.Identity`` and dropout of probability zero everywhere; other dropout, which
    training may want, where it parts a layer from the normalization or activation that its kernel could take in."""
    for node in list(gm.graph.nodes):
        read = source(node)
        if read is None or kind(node) != "identity" or node.op == "call_method":
            continue
        module = module_of(node)
        never = isinstance(module, nn.Identity) or getattr(module, "p", None) == 0
        layer = kind(read) in ("conv", "linear", "bn", "conv_transpose") or kind(read).startswith("functional_")
        parts = layer and any(kind(user) in _TAKEN_IN or user.target is F.batch_norm for user in node.users)
        if never or parts:
            node.replace_all_uses_with(read)
            gm.graph.erase_node(node)
    gm.recompile()


def to_modules(gm: fx.GraphModule) -> tuple[str, ...]:
    """Make, in place, plain batch normalization modules of ``F.batch_norm`` on running statistics, ``SyncBatchNorm``, and of a
    multiplication and addition of constants per channel right behind a convolution (a frozen normalization). Returns their
    paths."""
    made = []
    for node in list(gm.graph.nodes):
        found = _functional(gm, node) or _synchronized(node) or _affine(gm, node)
        if found is None:
            continue
        read, norm, path = found
        gm.set_submodule(path, norm.eval().requires_grad_(False))
        with gm.graph.inserting_before(node):
            called = gm.graph.call_module(path, (read,))
        called.meta = dict(node.meta)
        node.replace_all_uses_with(called)
        # At once: the new module may stand where what these read was.
        _erase_unread(gm, node)
        made.append(path)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return tuple(made)


def linears_on_rows(gm: fx.GraphModule) -> None:
    """Where a linear layer's result is flattened to rows for a normalization, flatten its input instead, in place: the layer and
    the normalization are then next to one another."""
    for node in list(gm.graph.nodes):
        rows = source(node) if kind(node) == "bn" else None
        linear = source(rows) if rows is not None and kind(rows) == "reshape" else None
        if rows is None or linear is None or kind(linear) != "linear" or len(rows.users) > 1:
            continue
        before, after, read = linear.meta.get("shape", ()), rows.meta.get("shape", ()), source(linear)
        others = [user for user in linear.users if user is not rows]
        if read is None or len(before) < 3 or len(after) != 2 or after[1] != before[-1] or not all(_shape_alone(u, linear) for u in others):
            continue
        graph, width = gm.graph, before[-1]
        with graph.inserting_before(linear):
            sizes = [graph.call_method("size", (read, i)) if size is None else size for i, size in enumerate(before[:-1])]
            flat = graph.call_method("reshape", (read, -1, read.meta["shape"][-1]))
        flat.meta = {**read.meta, "shape": (None, read.meta["shape"][-1])}
        for user in others:
            with graph.inserting_before(user):
                if user.target == "reshape_as":
                    again = graph.call_method("reshape", (user.args[0], (*sizes, width)))
                    again.meta = dict(user.meta)
                    user.replace_all_uses_with(again)
                else:
                    user.replace_all_uses_with(graph.call_method("size", (read, user.args[1])))
            graph.erase_node(user)
        linear.args, linear.kwargs = (flat,), {}
        linear.meta = {**linear.meta, "shape": tuple(after)}
        rows.replace_all_uses_with(linear)
        graph.erase_node(rows)
    gm.recompile()


def fold_into_readers(gm: fx.GraphModule) -> tuple[str, ...]:
    """Fold, in place, each batch normalization that one convolution without padding, or one linear layer on rows, alone reads into
    that layer. Padding holds zeros that the normalization would not have made, so a padded convolution stays. Returns the
    normalizations' paths."""
    done = []
    for node in list(gm.graph.nodes):
        norm, read = module_of(node), source(node)
        if kind(node) != "bn" or read is None or len(node.users) != 1 or not isinstance(norm, BATCH_NORMS) or norm.running_var is None:
            continue
        # A layer right before it takes it in at less cost.
        if kind(read) in ("conv", "linear", "conv_transpose") and len(read.users) == 1:
            continue
        (reader,) = node.users
        layer: Any = module_of(reader)
        calls = [n.target for n in gm.graph.nodes if n.op == "call_module"]
        if kind(reader) not in ("conv", "linear") or calls.count(reader.target) > 1 or not _bare(layer, node):
            continue
        factor, shift = _factor(norm)
        weight = layer.weight.detach().double()
        groups = int(getattr(layer, "groups", 1))
        columns = factor.reshape(groups, 1, -1).expand(groups, len(weight) // groups, -1).reshape(len(weight), -1)
        shifts = shift.reshape(groups, 1, -1).expand(groups, len(weight) // groups, -1).reshape(len(weight), -1)
        flat = weight.reshape(*weight.shape[:2], -1)
        bias = (flat.sum(2) * shifts).sum(1) + (0.0 if layer.bias is None else layer.bias.detach().double())
        dtype = layer.weight.dtype
        layer.weight = nn.Parameter((weight * columns.reshape(*columns.shape, *[1] * (weight.dim() - 2))).to(dtype), requires_grad=False)
        layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        node.replace_all_uses_with(read)
        gm.graph.erase_node(node)
        done.append(str(node.target))
    gm.recompile()
    return tuple(done)


def _bare(layer: Any, norm: fx.Node) -> bool:
    if layer._forward_hooks or layer._forward_pre_hooks or layer.weight.dtype != torch.float32:
        return False
    if isinstance(layer, nn.Linear):
        return len(norm.meta.get("shape", ())) == 2
    return layer.padding == "valid" or (not isinstance(layer.padding, str) and not any(layer.padding))


def _factor(norm: Any) -> tuple[Tensor, Tensor]:
    factor = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.affine:
        factor = factor * norm.weight.detach().double()
    shift = -norm.running_mean.double() * factor
    return factor, shift + norm.bias.detach().double() if norm.affine else shift


Found = tuple[fx.Node, nn.Module, str]


def _functional(gm: fx.GraphModule, node: fx.Node) -> Found | None:
    if node.target not in (F.batch_norm, torch.batch_norm) or node.op != "call_function":
        return None
    names = _ARGUMENTS if node.target is F.batch_norm else ("input", "weight", "bias", "running_mean", "running_var", *_ARGUMENTS[5:])
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    read, mean, var = given["input"], given.get("running_mean"), given.get("running_var")
    own = [given.get(name) for name in ("running_mean", "running_var", "weight", "bias")]
    numbers = isinstance(given.get("training", False), bool) and not given.get("training", False)
    if not numbers or mean is None or var is None or any(n is not None and not _is_parameter(n) for n in own):
        return None
    rank = len(read.meta.get("shape", ()))
    if rank not in _BY_RANK:
        return None
    tensors = [None if n is None else attribute(gm, n.target) for n in own]
    norm = _norm(rank, tensors[0], tensors[1], tensors[2], tensors[3], float(given.get("eps", 1e-5)))
    private = tuple(n for n in own if n is not None and len(n.users) == 1)
    return read, norm, _free(gm, str(mean.target).rpartition(".")[0] or "norm", private)


def _synchronized(node: fx.Node) -> Found | None:
    module, read = module_of(node), source(node)
    if not isinstance(module, nn.SyncBatchNorm) or read is None or module.running_mean is None or module.running_var is None:
        return None
    rank = len(read.meta.get("shape", ()))
    if rank not in _BY_RANK:
        return None
    return read, _norm(rank, module.running_mean, module.running_var, module.weight, module.bias, module.eps), str(node.target)


def _affine(gm: fx.GraphModule, node: fx.Node) -> Found | None:
    """``layer(x) * constant + constant``, or one of the two, a number or one a channel each."""
    if not _elementwise(node, _ADDS, "add") and not _elementwise(node, _MULTIPLIES, "mul"):
        return None
    last, scale, shift = node, None, None
    if _elementwise(node, _ADDS, "add"):
        inner, shift = _constant(gm, node)
        if inner is None or shift is None:
            return None
        last = inner
    if _elementwise(last, _MULTIPLIES, "mul") and (last is node or len(last.users) == 1):
        inner, scale = _constant(gm, last)
        if inner is None or scale is None:
            return None
        last = inner
    elif shift is None:
        return None
    # An addition reads the product, which must not become a normalization of its own first.
    user = next(iter(node.users)) if shift is None and len(node.users) == 1 else None
    if user is not None and _elementwise(user, _ADDS, "add") and _constant(gm, user)[0] is node:
        return None
    layer: Any = module_of(last)
    if kind(last) not in ("conv", "conv_transpose", "linear") or len(last.users) > 1:
        return None
    shape = last.meta.get("shape", ())
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if len(shape) not in _BY_RANK or shape[1] != channels or (isinstance(layer, nn.Linear) and len(shape) != 2):
        return None
    scales = _of_channels(1.0 if scale is None else scale, channels, len(shape))
    shifts = _of_channels(0.0 if shift is None else shift, channels, len(shape))
    if scales is None or shifts is None:
        return None
    norm = _norm(len(shape), torch.zeros(channels), torch.ones(channels), scales, shifts, 0.0)
    own = tuple(n for one in dict.fromkeys((node, *node.all_input_nodes)) for n in one.all_input_nodes if n.op == "get_attr")
    owner = str(own[0].target).rpartition(".")[0] if own else ""
    return last, norm, _free(gm, owner, own) if owner else _free(gm, f"{last.target}_scale")


def _erase_unread(gm: fx.GraphModule, node: fx.Node) -> None:
    if node.users or node.op in ("placeholder", "output"):
        return
    read = node.all_input_nodes
    gm.graph.erase_node(node)
    for one in read:
        _erase_unread(gm, one)


def _elementwise(node: fx.Node, functions: tuple[Any, ...], method: str) -> bool:
    called = node.target in functions if node.op == "call_function" else node.op == "call_method" and node.target in (method, f"{method}_")
    return called and len(node.args) == 2 and not node.kwargs


def _constant(gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node | None, Any]:
    """The value and the constant of an operation on both, None where it is none of these."""
    for one, other in (node.args, node.args[::-1]):
        if isinstance(one, fx.Node) and one.op != "get_attr":
            if isinstance(other, int | float):
                return one, float(other)
            if isinstance(other, fx.Node) and other.op == "get_attr":
                return one, attribute(gm, other.target)
    return None, None


def _of_channels(value: Any, channels: int, rank: int) -> Tensor | None:
    """A constant as one number a channel, None where it differs within one."""
    if isinstance(value, float):
        return torch.full((channels,), value)
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return None
    full = value.detach().reshape(*[1] * (rank - value.dim()), *value.shape) if value.dim() <= rank else value
    wanted = (1, channels, *[1] * (rank - 2))
    if full.numel() == 1 or tuple(full.shape) == wanted:
        return full.reshape(-1).expand(channels).clone()
    return None


def _norm(rank: int, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> nn.Module:
    norm: Any = _BY_RANK[rank](len(mean), eps, affine=weight is not None or bias is not None)
    norm.running_mean, norm.running_var = mean.detach().clone(), var.detach().clone()
    if norm.affine:
        norm.weight = nn.Parameter(torch.ones_like(mean) if weight is None else weight.detach().clone())
        norm.bias = nn.Parameter(torch.zeros_like(mean) if bias is None else bias.detach().clone())
    return norm.eval()  # type: ignore[no-any-return]


def _shape_alone(user: fx.Node, node: fx.Node) -> bool:
    if user.op != "call_method":
        return False
    if user.target == "reshape_as":
        return user.args[1] is node and user.args[0] is not node
    return user.target == "size" and len(user.args) == 2 and user.args[0] is node and user.args[1] in range(len(node.meta["shape"]) - 1)


def _is_parameter(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _free(gm: fx.GraphModule, path: str, own: tuple[object, ...] = ()) -> str:
    """``path``, or one below it where something else in it is called or read than the nodes ``own``."""
    held = reads_below(gm, path, own)
    if not held and (own or not _exists(gm, path)):
        return path
    base = path = f"{path}.norm" if own else path
    count = 1
    while _exists(gm, path):
        path, count = f"{base}_{count}", count + 1
    return path


def _exists(gm: fx.GraphModule, path: str) -> bool:
    try:
        gm.get_submodule(path)
    except AttributeError:
        return False
    return True
