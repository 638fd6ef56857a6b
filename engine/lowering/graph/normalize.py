"""Functional convolutions and linears become the modules they are, so that they can be folded and quantized by name."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engine.lowering.graph.kinds import CONVOLUTIONS, TRANSPOSED, attribute, kind, reads_below
from engine.lowering.graph.sizes import hold

_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_OF_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


def functional_to_modules(gm: fx.GraphModule) -> tuple[str, ...]:
    """Rewrite, in place, each ``F.conv*d``, ``F.conv_transpose*d`` or ``F.linear`` whose weight and bias are parameters that this call
    alone reads.

    The module takes the path of the parameters' owner, and that of the weight where the owner holds something else too.
    Returns those paths.
    """
    replaced = []
    for node in list(gm.graph.nodes):
        if kind(node) not in ("functional_conv", "functional_transposed", "functional_linear"):
            continue
        names = _OF_TRANSPOSED if kind(node) == "functional_transposed" else _ARGUMENTS
        given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        weight, bias = given["weight"], given.get("bias")
        if not _private(weight) or not (bias is None or _private(bias)):
            continue
        module = _build(node, attribute(gm, weight.target), None if bias is None else attribute(gm, bias.target), given)
        path = _path_for(gm, weight, bias)
        if module is None or path is None:
            continue
        for own in (weight, bias):
            if own is not None:
                owner, _, name = str(own.target).rpartition(".")
                delattr(gm.get_submodule(owner), name)
        gm.set_submodule(path, module)
        with gm.graph.inserting_before(node):
            called = gm.graph.call_module(path, (given["input"],))
        called.meta = dict(node.meta)
        node.replace_all_uses_with(called)
        for dead in (node, weight, bias):
            if isinstance(dead, fx.Node):
                gm.graph.erase_node(dead)
        replaced.append(path)
    if replaced:
        gm.recompile()
    return tuple(replaced)


def chunks_to_slices(gm: fx.GraphModule) -> None:
    """Rewrite, in place, each piece that is taken out of ``chunk`` along a dimension of known size as a slice, which integers
    can go through."""
    for node in list(gm.graph.nodes):
        read = node.args[0] if node.args else None
        if node.op != "call_function" or node.target is not operator.getitem or not isinstance(read, fx.Node):
            continue
        piece = _piece(read, node.args[1])
        if piece is None:
            continue
        whole, dim, bounds = piece
        if (len(whole.meta["shape"]), dim) in ((3, 1), (4, 2), (4, 3)):
            hold(gm.graph)
        with gm.graph.inserting_before(node):
            taken = gm.graph.call_function(operator.getitem, (whole, (*(slice(None),) * dim, bounds)))
        taken.meta = dict(node.meta)
        node.replace_all_uses_with(taken)
        gm.graph.erase_node(node)
        if not read.users:
            gm.graph.erase_node(read)
    gm.recompile()


def _piece(call: fx.Node, index: object) -> tuple[fx.Node, int, slice] | None:
    """What piece number ``index`` of a call of ``chunk`` is: of which node, along which dimension, from where to where."""
    is_chunk = (call.op == "call_method" and call.target == "chunk") or (call.op == "call_function" and call.target is torch.chunk)
    if not is_chunk or not isinstance(index, int) or not isinstance(call.args[0], fx.Node):
        return None
    given = dict(zip(("input", "chunks", "dim"), call.args, strict=False)) | dict(call.kwargs)
    count, dim, shape = given.get("chunks"), given.get("dim", 0), call.args[0].meta.get("shape")
    if not isinstance(count, int) or not isinstance(dim, int) or shape is None or not 0 <= dim < len(shape) or shape[dim] is None:
        return None
    size = -(-shape[dim] // count)
    pieces = -(-shape[dim] // size)
    start = (index + pieces if index < 0 else index) * size
    return call.args[0], dim, slice(start, min(start + size, shape[dim]))


def _private(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr" and len(node.users) == 1


def _path_for(gm: fx.GraphModule, weight: fx.Node, bias: fx.Node | None) -> str | None:
    """Where a module of these parameters can stand; None where something else reads one of them, or calls what holds it."""
    owner = str(weight.target).rpartition(".")[0]
    own = (weight, bias)
    if owner and not reads_below(gm, owner, own):
        return owner
    targets = [str(node.target) for node in own if node is not None]
    called = [f"{n.target}." for n in gm.graph.nodes if n.op == "call_module"]
    held = any(target.startswith(module) for target in targets for module in called)
    return None if held or any(reads_below(gm, target, own) for target in targets) else targets[0]


def _build(node: fx.Node, weight: Tensor, bias: Tensor | None, given: dict[str, Any]) -> nn.Module | None:
    if node.target is F.linear:
        module: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        transposed = kind(node) == "functional_transposed"
        build: Any = (TRANSPOSED if transposed else CONVOLUTIONS)[weight.dim() - 3]
        defaults = {"stride": 1, "padding": 0, "dilation": 1, **({"output_padding": 0} if transposed else {})}
        sizes = {name: given.get(name, default) for name, default in defaults.items()}
        if any(not isinstance(v, int | str) and any(not isinstance(i, int) for i in v) for v in sizes.values()):
            return None
        groups = given.get("groups", 1)
        channels = (weight.shape[0], weight.shape[1] * groups) if transposed else (weight.shape[1] * groups, weight.shape[0])
        shape = (*channels, tuple(weight.shape[2:]))
        module = build(*shape, groups=groups, bias=bias is not None, device="meta", **sizes)
    module.weight = nn.Parameter(weight.detach())
    if bias is not None:
        module.bias = nn.Parameter(bias.detach())
    return module.eval()
