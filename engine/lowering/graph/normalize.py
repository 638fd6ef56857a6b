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
_PRODUCTS = (torch.matmul, torch.mm, operator.matmul, "matmul", "mm", "__matmul__")
_ADDED = (torch.addmm, "addmm")


def functional_to_modules(gm: fx.GraphModule) -> tuple[str, ...]:
    """Rewrite, in place, each ``F.conv*d``, ``F.conv_transpose*d``, ``F.linear``, product of a value with a matrix (``x @ w``,
    ``x @ w + b``) and ``addmm`` whose weight and bias are parameters that this call alone reads.

    The module takes the path of the parameters' owner, and that of the weight where the owner holds something else too.
    Returns those paths.
    """
    replaced = []
    for node in list(gm.graph.nodes):
        given = _given(gm, node)
        if given is None:
            continue
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
        end = given.get("sum", node)
        with gm.graph.inserting_before(end):
            called = gm.graph.call_module(path, (given["input"],))
        called.meta = dict(end.meta)
        end.replace_all_uses_with(called)
        for dead in dict.fromkeys((end, node, weight, bias)):
            if isinstance(dead, fx.Node):
                gm.graph.erase_node(dead)
        replaced.append(path)
    if replaced:
        gm.recompile()
    return tuple(replaced)


def _given(gm: fx.GraphModule, node: fx.Node) -> dict[str, Any] | None:
    """The arguments of a functional layer by name, None for another node; ``sum`` is the addition of the bias where that is a node of its
    own."""
    if kind(node) in ("functional_conv", "functional_transposed", "functional_linear"):
        names = _OF_TRANSPOSED if kind(node) == "functional_transposed" else _ARGUMENTS
        return {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if node.kwargs or not all(isinstance(argument, fx.Node) for argument in node.args):
        return None
    name = str(node.target) if node.op == "call_method" else node.target
    if name in _ADDED and len(node.args) == 3:
        bias, read, weight = node.args
        fits = _is_row(gm, bias, weight)
        return {"input": read, "weight": weight, "bias": bias} if fits and _is_product(gm, read, weight) else None
    if name not in _PRODUCTS or len(node.args) != 2 or not _is_product(gm, *node.args):
        return None
    read, weight = node.args
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if user is not None and kind(user) == "add" and len(user.args) == 2 and not user.kwargs:
        other = next((argument for argument in user.args if argument is not node), None)
        if _private(other) and _is_row(gm, other, weight):
            return {"input": read, "weight": weight, "bias": other, "sum": user}
    return {"input": read, "weight": weight}


def _is_product(gm: fx.GraphModule, read: Any, weight: Any) -> bool:
    """Whether ``read`` is a value of floats whose last dimension a matrix is multiplied with."""
    is_matrix = _private(weight) and isinstance(matrix := attribute(gm, weight.target), Tensor) and matrix.dim() == 2
    return is_matrix and matrix.dtype == torch.float32 == read.meta.get("dtype") and read.op != "get_attr"


def _is_row(gm: fx.GraphModule, bias: Any, weight: Any) -> bool:
    """Whether ``bias`` is a parameter with a number for each column of ``weight``."""
    if not _private(bias) or weight.op != "get_attr":
        return False
    row, matrix = attribute(gm, bias.target), attribute(gm, weight.target)
    return isinstance(row, Tensor) and row.dtype == torch.float32 and row.shape == matrix.shape[1:]


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
    if kind(node) not in ("functional_conv", "functional_transposed"):
        if node.target is not F.linear:
            # (in, out)
            weight = weight.detach().t().contiguous()
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
