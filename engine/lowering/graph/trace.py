"""torch.fx tracing that knows shapes: control flow on spatial sizes traces, and the batch stays free (see ``proxy``).

A module whose forward cannot be traced is made a leaf, innermost first, and reported.
"""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.utils._pytree import tree_leaves

from engine.errors import EngineError, one_line
from engine.lowering.graph.kinds import changes_a_part, does_nothing, in_place, is_foreign
from engine.lowering.graph.proxy import BATCHES, SizedProxy
from engine.lowering.graph.sizes import Reading, hold, other_sizes, plain, signature

_HERE = os.path.dirname(__file__) + os.sep
_TORCH = os.path.dirname(torch.__file__) + os.sep


@dataclass(frozen=True)
class UntracedModule:
    """A module that stays whole: ``path`` in the model, why, and where (``file:line``) the trace stopped."""

    path: str
    kind: str
    reason: str
    where: str


@dataclass(frozen=True)
class Traced:
    """A traced model. Each tensor node's meta holds ``shape`` (batch-dependent sizes as None) and ``dtype``; ``held_sizes`` of the graph
    tells whether it serves this size of images alone."""

    module: fx.GraphModule
    untraced: tuple[UntracedModule, ...]
    max_abs_delta: float


class ShapeTracer(fx.Tracer):
    """Records the graph while two examples run through the model beside it."""

    def __init__(self, examples: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.examples = examples
        self.untraced: list[UntracedModule] = []
        self.reading = Reading()
        self._values: dict[fx.Node, tuple[Any, ...]] = {}
        self._leaves: set[str] = set()
        self._parameters: dict[str, Any] = {}
        self._evaluating = False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return SizedProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        if kind == "call_function" and is_foreign(target):
            if does_nothing(target, args, kwargs):
                return args[0]
            # fx keeps such a call whole where its author asks for it, but only torch's operations can be stored and quantized.
            if self.module_stack:
                return target(*args, **kwargs)
        if kind == "call_method" and changes_a_part(target, args):
            raise TraceError(f"changes a part of a tensor in place ({target})")
        proxy = super().create_proxy(kind, target, plain(args), plain(kwargs), *rest, **named)
        assert isinstance(proxy, SizedProxy)
        proxy.values = self._evaluate(proxy.node)
        self._values[proxy.node] = proxy.values
        return proxy

    def create_args_for_root(self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """The images are the one input; what else ``forward`` takes keeps its default."""
        name = list(inspect.signature(root_fn).parameters)[1]
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._leaves or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        # fx intercepts attribute access on every module of the process; what runs beside the trace must not be recorded.
        if self._evaluating:
            return attr_val
        self._parameters = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._evaluating:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        last = next(iter(reversed(self.graph.nodes)), None)
        depth = len(self.module_stack)
        before = replace(self.reading)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            if self.is_leaf_module(m, path):
                raise
            self._forget_after(last)
            # What stays whole computes with the sizes it is given.
            self.reading.read, self.reading.compared = before.read, before.compared
            while len(self.module_stack) > depth:
                self.module_stack.popitem()
            self._leaves.add(path)
            self.untraced.append(UntracedModule(path, type(m).__name__, _reason(error), _where(error)))
            return super().call_module(m, forward, args, kwargs)

    def _forget_after(self, last: fx.Node | None) -> None:
        for node in reversed(list(self.graph.nodes)):
            if node is last:
                break
            self.graph.erase_node(node)
            self._values.pop(node, None)
        for name, proxy in list(self._parameters.items()):
            if proxy.node not in self._values:
                del self._parameters[name]

    def _evaluate(self, node: fx.Node) -> tuple[Any, ...]:
        self._evaluating = True
        try:
            return tuple(self._evaluate_on(node, which) for which in range(len(self.examples)))
        finally:
            self._evaluating = False

    def _evaluate_on(self, node: fx.Node, which: int) -> Any:
        if node.op == "placeholder":
            return self.examples[which]
        if node.op == "output":
            return None
        if node.op == "get_attr":
            return _attribute(self.root, str(node.target))

        def pick(used: fx.Node) -> Any:
            # fx writes constants into the graph without a proxy.
            return self._values[used][which] if used in self._values else self._evaluate_on(used, which)

        args, kwargs = fx.map_arg(node.args, pick), fx.map_arg(node.kwargs, pick)
        if node.op == "call_module":
            return self._called(str(node.target), args, kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _called(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.root.get_submodule(path)
        result = module(*args, **kwargs)
        # A layer on integers is what its weights say: nothing calls its hooks.
        if path not in self._leaves and (module._forward_hooks or module._forward_pre_hooks):
            plain = module.forward(*args, **kwargs)
            pairs = zip(tree_leaves(result), tree_leaves(plain), strict=False)
            if any(isinstance(a, Tensor) and not (isinstance(b, Tensor) and torch.equal(a, b)) for a, b in pairs):
                raise TraceError(f"a forward hook changes what {path} computes")
        return result


def trace(model: nn.Module, example: Tensor) -> Traced:
    """Trace ``model`` (in eval mode) on ``example`` (N, C, H, W), at least one image.

    Module names are kept; what cannot be traced becomes a leaf. The graph is checked against the model on the example:
    ``max_abs_delta`` is the largest difference. Raises EngineError when not even the outermost call can be run.
    """
    copies = tuple(example[torch.arange(n) % len(example)].clone() for n in BATCHES)
    with torch.no_grad():
        try:
            expected = model(copies[0].clone())
        except Exception as error:
            raise EngineError(
                f"{type(model).__name__}.forward failed on an input of shape {tuple(copies[0].shape)}: "
                f"{_reason(error)} ({_where(error)}): check the model and the image size"
            ) from error
        if not isinstance(expected, Tensor):
            raise EngineError(
                f"{type(model).__name__} returns {type(expected).__name__}, not one tensor of logits: wrap it in a factory that does"
            )
        if not torch.allclose(model(copies[0].clone()), expected, rtol=1e-3, atol=1e-5 * max(1.0, float(expected.abs().max()))):
            raise EngineError(
                f"{type(model).__name__} gives other logits for the same images at the next call: its forward draws random numbers or "
                "keeps a state, which it must not do in eval mode"
            )
        own = set(vars(model))
        tracer = ShapeTracer(copies)
        try:
            traced = _record(model, tracer, copies[1])
        except Exception as error:
            whole = UntracedModule("model", type(model).__name__, _reason(error), _where(error))
            tracer = ShapeTracer(copies)
            tracer._leaves.add("model")
            tracer.untraced.append(whole)
            traced = _record(_Whole(model), tracer, copies[1], type(model).__name__)
        finally:
            # fx leaves the constants that it meets on the model.
            _forget(model, own)
        if tracer.reading.compared or (tracer.reading.read and _differs(model, traced, copies)):
            hold(traced.module.graph)
        return traced


def _forget(model: nn.Module, own: set[str]) -> None:
    for name in set(vars(model)) - own:
        delattr(model, name)


def _differs(model: nn.Module, traced: Traced, examples: tuple[Tensor, ...]) -> bool:
    """Whether the graph is another one on images of other sizes, of those that the model takes; so too where it takes none."""
    expected, own = signature(traced.module), set(vars(model))
    taken = False
    for sizes in other_sizes(tuple(examples[0].shape[2:])):
        try:
            others = tuple(x.new_zeros((*x.shape[:2], *sizes)) for x in examples)
            model(others[0])
        except Exception:
            continue
        try:
            taken = True
            if signature(_record(model, ShapeTracer(others), others[1]).module) != expected:
                return True
        except Exception:
            return True
        finally:
            _forget(model, own)
    return not taken


def _record(root: nn.Module, tracer: ShapeTracer, example: Tensor, name: str = "") -> Traced:
    """The graph of ``root``, checked on ``example``. Raises TraceError when it computes something else."""
    graph = tracer.trace(root)
    _record_shapes(graph, tracer._values)
    module = fx.GraphModule(root, graph, name or type(root).__name__)
    _follow_in_place(module)
    _reshape_views(module.graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    module.eval()
    expected = root(example.clone())
    delta = float((module(example.clone()) - expected).abs().max())
    if delta > 1e-4 * max(1.0, float(expected.abs().max())):
        raise TraceError(f"the traced graph differs from the model by {delta:.3g}: its forward changes values that were read before")
    called = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    return Traced(module, tuple(leaf for leaf in tracer.untraced if leaf.path in called), delta)


def _follow_in_place(gm: fx.GraphModule) -> None:
    """What reads a tensor after an operation has changed it in place reads that operation's result."""
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    for node in gm.graph.nodes:
        changed = node.args[0] if node.args else None
        if isinstance(changed, fx.Node) and in_place(node):
            later = {user for user in changed.users if order[user] > order[node]}
            changed.replace_all_uses_with(node, delete_user_cb=later.__contains__)


def _reshape_views(graph: fx.Graph) -> None:
    """``view`` takes one memory layout only; the same numbers may come channels last."""
    for node in graph.nodes:
        if node.op == "call_method" and node.target == "view" and not any(isinstance(size, torch.dtype) for size in node.args):
            node.target = "reshape"


class _Whole(nn.Module):
    """Holds a model none of whose forward can be traced, so that it is a graph of one leaf."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


def _record_shapes(graph: fx.Graph, values: dict[fx.Node, tuple[Any, ...]]) -> None:
    for node in graph.nodes:
        # fx marks the last operation of a function that it was to keep whole, and would look for that function by its name.
        node.meta.pop("is_wrapped", None)
        if node not in values or node.op == "output":
            continue
        first, second = values[node]
        if isinstance(first, Tensor):
            node.meta["shape"] = tuple(a if a == b else None for a, b in zip(first.shape, second.shape, strict=True))
            node.meta["dtype"] = first.dtype


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _reason(error: BaseException) -> str:
    return one_line(error) or type(error).__name__


def _where(error: BaseException) -> str:
    """The innermost place in the model's own code: not in torch, not here."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_TORCH) and not f.filename.startswith(_HERE)
    ]
    frames = [f for f in frames if not f.filename.startswith("<")]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "unknown place"
