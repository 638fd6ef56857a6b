"""The islands of a model: a walk from its root down to the largest modules that trace."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.lowering.graph.call import Call, call_of, largest, largest_difference
from engine.lowering.graph.kinds import weights_in
from engine.lowering.graph.simplify import simplify
from engine.lowering.graph.sizes import held_sizes
from engine.lowering.graph.trace import Traced, UntracedModule
from engine.lowering.graph.trace import trace as trace_graph
from engine.lowering.graph.tracing import storable
from engine.tasks.base import Batch
from engine.tasks.outputs import normalized

# Calls of one module in a forward that are looked at: a head on every level of a pyramid, and no loop without end.
_CALLS = 16
# A part (0..1) of an island's weights that may lie in modules within it that do not trace.
_LEFT = 0.1
_CLOSE = 1e-3

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Island:
    """A module at ``path`` that traces: its ``graph``, whose modules are named by their paths in the whole model, and the inputs of its
    ``calls`` in one forward. ``untraced`` are modules within it that stay whole."""

    path: str
    kind: str
    graph: fx.GraphModule
    untraced: tuple[UntracedModule, ...]
    max_abs_delta: float
    calls: tuple[tuple[Tensor, ...], ...]

    @property
    def call(self) -> Call:
        found = call_of(self.graph.graph)
        assert found is not None
        return found


@dataclass(frozen=True)
class Outside:
    """A module with layers that is in no island, and why."""

    path: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Found:
    """``islands`` in the order of their first call."""

    islands: tuple[Island, ...]
    outside: tuple[Outside, ...]


def find(root: nn.Module, example: Batch, stop: StopToken) -> Found:
    """The islands of ``root`` (in eval mode), which is called as ``example`` tells. Raises Cancelled."""
    left = [path for path, _ in root.named_children()]
    seen: set[int] = set()
    islands: list[Island] = []
    outside: list[Outside] = []
    while left:
        calls = recorded(root, example, left)
        below: list[str] = []
        for path in left:
            stop.check()
            module = root.get_submodule(path)
            if id(module) in seen or not weights_in(module):
                continue
            seen.add(id(module))
            found = _island(root, path, calls.get(path, []))
            if isinstance(found, Island):
                islands.append(found)
            elif inner := [f"{path}.{name}" for name, _ in module.named_children()]:
                below += inner
            else:
                outside.append(Outside(path, type(module).__name__, found))
        left = below
    order = {path: place for place, path in enumerate(recorded(root, example, [island.path for island in islands]))}
    return Found(tuple(sorted(islands, key=lambda island: order.get(island.path, len(order)))), tuple(outside))


def recorded(root: nn.Module, example: Batch, paths: list[str]) -> dict[str, list[Arguments]]:
    """What the modules at ``paths`` are called with in one forward of ``root``, in the order of their first call."""
    found: dict[str, list[Arguments]] = {}

    def keep(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls = found.setdefault(path, [])
        if len(calls) < _CALLS:
            calls.append(tree_map(_copied, (args, kwargs)))

    with ExitStack() as stack, torch.no_grad():
        for path in paths:
            handle = root.get_submodule(path).register_forward_pre_hook(partial(keep, path), with_kwargs=True)
            stack.callback(handle.remove)
        root(*tree_map(_copied, example.args), **tree_map(_copied, dict(example.kwargs)))
    return found


def called_with(root: nn.Module, example: Batch, islands: tuple[Island, ...]) -> tuple[Island, ...]:
    """``islands`` with the inputs of their calls in a forward on another ``example``; those that are not called there keep theirs."""
    calls = recorded(root, example, [island.path for island in islands])

    def inputs(island: Island) -> tuple[tuple[Tensor, ...], ...]:
        found: list[tuple[Tensor, ...]] = []
        for args, kwargs in calls.get(island.path, []):
            with suppress(EngineError):
                found.append(island.call.flatten(args, kwargs))
        return tuple(one for one in found if all(x.numel() for x in one)) or island.calls

    return tuple(replace(island, calls=inputs(island)) for island in islands)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _island(root: nn.Module, path: str, calls: list[Arguments]) -> Island | str:
    """The module at ``path`` as an island, or why it is none."""
    if not calls:
        return "it is not called as a module"
    filled = next((call for call in calls if all(x.numel() for x in tree_leaves(call) if isinstance(x, Tensor))), calls[0])
    leaves = [leaf for leaf in tree_leaves(filled) if isinstance(leaf, Tensor)]
    if not any(leaf.is_floating_point() and leaf.numel() for leaf in leaves):
        return "it is called without a tensor of numbers"
    module, count = root.get_submodule(path), _items(leaves)
    args, kwargs = filled
    example = Batch(args, kwargs, count=count)
    try:
        traced = trace_graph(_at(root, path), example)
        if reason := _not_whole(traced, module, path):
            return reason
        graph = simplify(traced.module, example)
        storable(graph)
        call = call_of(graph.graph)
        assert call is not None
        inputs = tuple(call.flatten(*one) for one in calls)
    except EngineError as error:
        return str(error)
    if reason := _wrong(graph, module, calls, inputs):
        return reason
    return Island(path, type(module).__name__, graph, traced.untraced, traced.max_abs_delta, inputs)


def _items(leaves: list[Tensor]) -> int:
    """The size that is taken for the number of items: the first one of the first tensor of numbers."""
    first = next((leaf for leaf in leaves if leaf.is_floating_point() and leaf.dim() and leaf.numel()), leaves[0])
    return len(first) if first.dim() else 1


def _not_whole(traced: Traced, module: nn.Module, path: str) -> str:
    """Why what was traced is no island: much of it stayed whole."""
    left = [leaf for leaf in traced.untraced if leaf.path == path or leaf.path.startswith(f"{path}.") or leaf.path == "model"]
    owner = traced.module
    held = sum(weights_in(owner.get_submodule(leaf.path)) for leaf in left)
    return f"{left[0].reason} ({left[0].where})" if held > _LEFT * weights_in(module) else ""


def _wrong(graph: fx.GraphModule, module: nn.Module, calls: list[Arguments], inputs: tuple[tuple[Tensor, ...], ...]) -> str:
    """Why the graph does not serve all calls."""
    held = held_sizes(graph.graph) is not None
    if held and len({tuple(tuple(x.shape[1:]) for x in one) for one in inputs}) > 1:
        return "it is called with several sizes and computes with them"
    with torch.no_grad():
        for (args, kwargs), one in zip(calls, inputs, strict=True):
            if not all(x.numel() for x in one):
                continue
            try:
                expected = normalized(module(*tree_map(_copied, args), **tree_map(_copied, kwargs)))
                change = largest_difference(graph(*(x.clone() for x in one)), expected)
            except Exception as error:
                return f"its graph does not serve every call ({type(error).__name__})"
            if not change <= _CLOSE * max(1.0, largest(expected)):
                return "its graph does not serve every call"
    return ""


def _at(root: nn.Module, path: str) -> nn.Module:
    """A module that calls the one at ``path`` of ``root`` and has the modules of ``root``, so that a trace names them as ``root`` does."""
    inner = root.get_submodule(path)

    class At(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return inner(*args, **kwargs)

    shell = At()
    shell.__dict__.update(_modules=dict(root._modules), _parameters=dict(root._parameters), _buffers=dict(root._buffers))
    shell.training = False

    def forward(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    forward.__signature__ = inspect.signature(inner.forward)  # type: ignore[attr-defined]
    shell.__dict__["forward"] = forward
    return shell


def parameters_outside(root: nn.Module, islands: Mapping[str, Any]) -> Iterator[tuple[str, nn.Module]]:
    """The modules of ``root`` that hold parameters of their own and are in no island, by path."""
    for path, module in root.named_modules():
        inside = any(path == island or path.startswith(f"{island}.") for island in islands)
        if not inside and any(True for _ in module.parameters(recurse=False)):
            yield path, module
