"""What a graph computes of parameters alone, computed once: a weight-standardized convolution then reads a constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from engine.lowering.graph.kinds import attribute

_RANDOM = ("rand", "bernoulli", "normal", "dropout", "multinomial", "poisson", "uniform", "exponential")
_GROWTH = 4  # An expanded or interpolated parameter is cheaper to compute than to store.


def fold_constants(gm: fx.GraphModule) -> tuple[str, ...]:
    """Replace, in place, each value that follows from parameters and buffers alone by a parameter that holds it, beside the first
    of those that it follows from. Returns the new paths."""
    values: dict[fx.Node, Any] = {}
    roots: dict[fx.Node, fx.Node] = {}
    with torch.no_grad():
        for node in gm.graph.nodes:
            if node.op == "get_attr":
                values[node], roots[node] = attribute(gm, node.target), node
            elif _follows(node, values) and (value := _value(node, values)) is not None:
                values[node] = value
                roots[node] = next(roots[used] for used in node.all_input_nodes if used in roots)
    made = []
    for node, value in values.items():
        if node.op == "get_attr" or not isinstance(value, Tensor) or all(user in values for user in node.users):
            continue
        if value.numel() > _GROWTH * max(int(attribute(gm, n.target).numel()) for n in _leaves(node)):
            continue
        made.append(_store(gm, node, value, str(roots[node].target)))
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return tuple(made)


def _follows(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        return False
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    return all(used in values for used in node.all_input_nodes) and not any(word in name for word in _RANDOM)


def _value(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda used: _copied(values[used]))
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _copied(value: Any) -> Any:
    """In-place operations are not to change the parameter itself."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def _leaves(node: fx.Node) -> list[fx.Node]:
    found, left = [], [node]
    while left:
        inner = left.pop()
        left += inner.all_input_nodes
        if inner.op == "get_attr":
            found.append(inner)
    return found


def _store(gm: fx.GraphModule, node: fx.Node, value: Tensor, root: str) -> str:
    owner, _, name = root.rpartition(".")
    module = gm.get_submodule(owner)
    new, count = f"{name}_folded", 1
    while hasattr(module, new):
        new, count = f"{name}_folded_{count}", count + 1
    if value.is_floating_point():
        module.register_parameter(new, torch.nn.Parameter(value.detach().clone(), requires_grad=False))
    else:
        module.register_buffer(new, value.detach().clone())
    path = f"{owner}.{new}" if owner else new
    with gm.graph.inserting_before(node):
        read = gm.graph.get_attr(path)
    read.meta = {**node.meta, "shape": tuple(value.shape), "dtype": value.dtype}
    node.replace_all_uses_with(read)
    return path
