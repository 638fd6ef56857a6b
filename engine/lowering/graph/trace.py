"""torch.fx tracing that knows shapes: control flow on spatial sizes traces, and the batch stays free (see ``proxy``).

A module whose forward cannot be traced is made a leaf, innermost first, and reported.
"""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from engine.errors import EngineError, one_line
from engine.lowering.base import NotWhole
from engine.lowering.graph import sequences
from engine.lowering.graph.assignment import OUT_OF_PLACE, changed
from engine.lowering.graph.call import Call, Input, input_names, keep, largest, largest_difference, results_of, tree_of
from engine.lowering.graph.kinds import SIZES, changes_a_part, does_nothing, in_place, is_foreign, source
from engine.lowering.graph.operations import of_namespace
from engine.lowering.graph.patched import recording, without_autocast
from engine.lowering.graph.proxy import BATCHES, SizedProxy
from engine.lowering.graph.sizes import Reading, hold, other_sizes, plain, signature
from engine.tasks.base import Batch, one_each
from engine.tasks.outputs import normalized

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
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
    tells whether it serves this size of images alone; with ``autocast`` the model asks for a lower precision in its forward, which the
    graph does without."""

    module: fx.GraphModule
    untraced: tuple[UntracedModule, ...]
    max_abs_delta: float
    autocast: bool = False


class ShapeTracer(fx.Tracer):
    """Records the graph while two examples run through the model beside it. The graph takes the tensors of the arguments in order and
    gives those of the results; ``outputs`` is the tree of what the model returns."""

    def __init__(self, call: Call, examples: tuple[Arguments, ...]) -> None:
        super().__init__()
        self.call, self.examples = call, examples
        self.inputs = tuple(call.flatten(*example) for example in examples)
        self.outputs: Any = None
        self.untraced: list[UntracedModule] = []
        self.reading = Reading()
        self._values: dict[fx.Node, tuple[Any, ...]] = {}
        self._leaves: set[str] = set()
        self._parameters: dict[str, Any] = {}
        self._evaluating = False
        self._own: frozenset[int] = frozenset()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return SizedProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        if kind == "call_function" and is_foreign(target):
            if does_nothing(target, args, kwargs):
                return args[0]
            # fx keeps such a call whole where its author asks for it, but only torch's operations can be stored and quantized.
            return target(*args, **kwargs)
        if kind == "call_method" and changes_a_part(target, args):
            return self._changed_part(str(target), args, kwargs)
        if kind == "call_function" and target in OUT_OF_PLACE and getattr(args[0], "part_of", None) is not None:
            return self._becoming(args[0], OUT_OF_PLACE[target](*args))
        if kind == "call_function":
            target = of_namespace(target)
        proxy = super().create_proxy(kind, target, plain(args), plain(kwargs), *rest, **named)
        assert isinstance(proxy, SizedProxy)
        proxy.known = self._evaluate(proxy.node)
        self._values[proxy.node] = proxy.known
        return proxy

    def _changed_part(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        part, *rest = args
        if getattr(part, "part_of", None) is None:
            raise TraceError(f"changes a part of a tensor in place ({method})")
        return self._becoming(part, changed(part, method, tuple(rest), kwargs))

    @staticmethod
    def _becoming(part: Any, new: Any) -> Any:
        part.becomes(new)
        return part

    def create_args_for_root(self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """One placeholder for each tensor of the arguments; what else ``forward`` takes is as in the example, or keeps its default."""
        leaves, spec = tree_flatten(self.examples[0])
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self._places = {given.name: i for i, given in enumerate(self.call.inputs)}

        def forward(root: nn.Module, *inputs: Any) -> Any:
            full = list(leaves)
            for place, value in zip(places, inputs, strict=True):
                full[place] = value
            args, kwargs = tree_unflatten(full, spec)
            return self._results(root_fn(root, *args, **kwargs))

        return forward, [self.root, *(self.create_proxy("placeholder", given.name, (), {}) for given in self.call.inputs)]

    def _results(self, raw: Any) -> Any:
        """The tensors that ``forward`` returned, in order: one alone, or a tuple. What else it returned is in ``outputs``."""
        found: list[Any] = []
        self.outputs = tree_of(self._parts(normalized(raw)), found, lambda value: isinstance(value, Tensor | fx.Proxy))
        if not found:
            raise TraceError("returns no tensor")
        return found[0] if self.outputs == {"$": 0} else tuple(found)

    def _parts(self, value: Any) -> Any:
        """``value`` with what stands for a tuple, a list or a dict taken apart."""
        proxy: Any = value
        if not isinstance(value, SizedProxy):
            given: Any = value
        elif not value.known or isinstance(value.known[0], Tensor):
            return value
        else:
            given = normalized(value.known[0])
            if given is None or isinstance(given, bool | int | float | str):
                if value.known[0] != value.known[1]:
                    raise TraceError("returns a number that depends on the batch")
                return given
            if isinstance(given, tuple | list):
                given = _with(given, [proxy[i] for i in range(len(given))])
            elif isinstance(given, dict):
                # An object is read as its class gives its fields; what is None stays None.
                read = proxy.__getitem__ if isinstance(value.known[0], Mapping) else partial(getattr, proxy)
                given = type(given)({key: None if part is None else read(key) for key, part in given.items()})
        if isinstance(given, tuple | list):
            return _with(given, [self._parts(part) for part in given])
        return type(given)({key: self._parts(part) for key, part in given.items()}) if isinstance(given, dict) else given

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, torch.jit.ScriptModule):
            self._note_scripted(m, module_qualified_name)
        return module_qualified_name in self._leaves or super().is_leaf_module(m, module_qualified_name)

    def _note_scripted(self, module: nn.Module, path: str) -> None:
        if path not in self._leaves:
            self._leaves.add(path)
            name = getattr(module, "original_name", type(module).__name__)
            self.untraced.append(UntracedModule(path, name, "it is compiled by TorchScript, which has no Python to trace", "torch.jit"))

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        # fx intercepts attribute access on every module of the process; what runs beside the trace must not be recorded.
        if self._evaluating:
            return attr_val
        self._parameters = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._evaluating:
            return forward(*args, **kwargs)
        self._own = self._own or frozenset(map(id, self.root.modules()))
        if id(m) not in self._own and not m.state_dict():
            # Made in the forward itself, as an activation by its name: it is what it computes.
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
            return self.inputs[which][self._places[str(node.target)]]
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


def trace(model: nn.Module, example: Batch | Tensor) -> Traced:
    """Trace ``model`` (in eval mode) on a batch of at least one item; a tensor (N, ...) is the batch of a model with one input.

    Module names are kept; what cannot be traced becomes a leaf. The graph takes and gives tensors alone: ``call_of`` tells how the
    model's arguments and results are made of them. It is checked against the model on the example: ``max_abs_delta`` is the largest
    difference. Raises EngineError when not even the outermost call can be run.
    """
    batch = Batch((example,), count=len(example)) if isinstance(example, Tensor) else example
    try:
        copies: tuple[Arguments, ...] = tuple(_arguments(batch, n) for n in BATCHES)
        call = _call(model, copies)
    except NotWhole:
        raise
    except (EngineError, ValueError, IndexError, TypeError) as error:
        lists = any(isinstance(value, list) and one_each(value) for value in (*batch.args, *batch.kwargs.values()))
        why = "it takes lists of items, whose number a graph cannot leave open" if lists else _reason(error)
        raise NotWhole(f"{type(model).__name__} cannot be traced: {why}", why) from error
    with torch.no_grad(), without_autocast() as autocast:
        try:
            expected = _returned(model, copies[0])
        except Exception as error:
            if _runs(model, batch):
                name = type(model).__name__
                raise NotWhole(f"{name} runs on its batch and not on other numbers of its items: {_reason(error)}") from error
            shapes = " and ".join(str(tuple(x.shape)) for x in call.flatten(*copies[0]))
            one = len(call.inputs) == 1
            raise EngineError(
                f"{type(model).__name__}.forward failed on {'an input of shape' if one else 'inputs of shapes'} {shapes}: "
                f"{_reason(error)} ({_where(error)}): check the model and {'the image size' if call.of_images else 'the data'}"
            ) from error
        if not results_of(expected):
            what = type(expected).__name__
            raise EngineError(f"{type(model).__name__} returns {what} without a tensor: wrap it in a model that returns tensors")
        if not _close(_returned(model, copies[0]), expected):
            what = "logits for the same images" if call.of_images else "outputs for the same inputs"
            raise EngineError(
                f"{type(model).__name__} gives other {what} at the next call: its forward draws random numbers or "
                "keeps a state, which it must not do in eval mode"
            )
        own = set(vars(model))
        tracer = ShapeTracer(call, copies)
        try:
            traced = _record(model, tracer, copies[1])
        except Exception as error:
            whole = UntracedModule("model", type(model).__name__, _reason(error), _where(error))
            tracer = ShapeTracer(call, copies)
            tracer._leaves.add("model")
            tracer.untraced.append(whole)
            try:
                traced = _record(_Whole(model), tracer, copies[1], type(model).__name__)
            except TraceError as again:
                raise NotWhole(f"{type(model).__name__} cannot be run as one piece: {_reason(again)}: change what it returns") from error
        finally:
            # fx leaves the constants that it meets on the model.
            _forget(model, own)
        call = _finished(tracer, traced.module.graph)
        if tracer.reading.compared or (tracer.reading.read and _differs(model, traced, tracer)):
            free = _of_any_length(model, traced, tracer)
            traced = free or traced
            if free is None:
                hold(traced.module.graph)
        keep(traced.module.graph, call)
        return replace(traced, autocast=autocast.used)


def _runs(model: nn.Module, batch: Batch) -> bool:
    try:
        _returned(model, (batch.args, dict(batch.kwargs)))
    except Exception:
        return False
    return True


def _arguments(batch: Batch, count: int) -> Arguments:
    """The arguments of ``count`` items, in tensors of their own."""
    repeated = batch.items([i % batch.count for i in range(count)])
    args, kwargs = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, (repeated.args, dict(repeated.kwargs)))
    return args, kwargs


def _with(value: Any, parts: list[Any]) -> Any:
    """A tuple, named tuple or list like ``value`` of other ``parts``."""
    if hasattr(value, "_fields"):
        return type(value)(*parts)
    return tuple(parts) if isinstance(value, tuple) else parts


def _returned(model: nn.Module, arguments: Arguments) -> Any:
    """What ``model`` returns for tensors that it may change, ``normalized``."""
    args, kwargs = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, arguments)
    return normalized(model(*args, **kwargs))


def _call(model: nn.Module, examples: tuple[Arguments, ...]) -> Call:
    """How ``model`` is called. Raises EngineError for arguments that its forward does not take, or that hold no tensor."""
    args, kwargs = examples[0]
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    tensors: list[Any] = []
    trees = tuple(tree_of(value, tensors) for value in args)
    by_name = {name: tree_of(value, tensors) for name, value in kwargs.items()}
    leaves = tree_leaves(examples[0])
    if strange := [leaf for leaf in leaves if not isinstance(leaf, Tensor) and results_of(normalized(leaf))]:
        raise NotWhole(f"an input of {type(model).__name__} is a {type(strange[0]).__name__} of tensors: give tuples, lists and dicts")
    if not tensors or len(tensors) != sum(isinstance(leaf, Tensor) for leaf in leaves):
        raise NotWhole(f"{type(model).__name__} is given no tensor: a batch's inputs must hold tensors, in tuples, lists and dicts")
    every = [positional[i] if i < len(positional) else f"input_{i}" for i in range(len(args))]
    names = input_names(list(zip(every, trees, strict=True)), by_name, len(tensors))
    start = Call(tuple(Input(name, name, x.dtype, ()) for name, x in zip(names, tensors, strict=True)), trees, by_name, tuple(positional))
    others = start.flatten(*examples[1])
    shapes = [tuple(a if a == b else None for a, b in zip(x.shape, y.shape, strict=True)) for x, y in zip(tensors, others, strict=True)]
    return replace(start, inputs=tuple(replace(given, shape=shape) for given, shape in zip(start.inputs, shapes, strict=True)))


def _finished(tracer: ShapeTracer, graph: fx.Graph) -> Call:
    """The call with what the trace has told: the graph's own names, and the tree of the results."""
    names = [node.name for node in graph.nodes if node.op == "placeholder"]
    inputs = (replace(given, value=name) for given, name in zip(tracer.call.inputs, names, strict=True))
    return replace(tracer.call, inputs=tuple(inputs), outputs=tracer.outputs)


def _close(found: Any, expected: Any) -> bool:
    pairs = list(zip(results_of(found), results_of(expected), strict=False))
    top = 1e-5 * max(1.0, largest(expected))
    return len(results_of(found)) == len(results_of(expected)) and all(
        torch.allclose(a, b, rtol=1e-3, atol=top) if b.is_floating_point() else torch.equal(a, b) for a, b in pairs
    )


def _forget(model: nn.Module, own: set[str]) -> None:
    for name in set(vars(model)) - own:
        delattr(model, name)


def _differs(model: nn.Module, traced: Traced, tracer: ShapeTracer) -> bool:
    """Whether the graph is another one on inputs of other sizes, of those that the model takes; so too where it takes none."""
    expected, own = signature(traced.module), set(vars(model))
    taken = False
    for which in range(len(other_sizes(()))):
        try:
            others: tuple[Arguments, ...] = tuple(tree_map(lambda x, n=which: _other(x, n), example) for example in tracer.examples)
            _returned(model, others[0])
        except Exception:
            continue
        try:
            taken = True
            if signature(_record(model, ShapeTracer(tracer.call, others), others[1]).module) != expected:
                return True
        except Exception:
            return True
        finally:
            _forget(model, own)
    return not taken


def _of_any_length(model: nn.Module, traced: Traced, tracer: ShapeTracer) -> Traced | None:
    """The graph for token sequences of every length; None where its lengths stay those of the example."""
    call, (example, second) = tracer.call, tracer.examples
    some = sequences.lengths(call, tracer.inputs[0])
    own, recorded = set(vars(model)), []
    try:
        for sizes in sequences.others(some):
            first, other = (sequences.resized(call, given, some, sizes) for given in (example, second))
            _returned(model, first)
            recorded.append(_record(model, ShapeTracer(call, (first, other)), other).module)
        module = sequences.freed(sequences.copied(traced.module), recorded, some) if some else None
    except Exception:
        return None
    finally:
        _forget(model, own)
    if module is None or not sequences.serves(module.eval(), lambda given: _returned(model, given), call, example, some):
        return None
    return replace(traced, module=module)


def _other(value: Any, which: int) -> Any:
    """A tensor of zeros in the ``which``-th of the other sizes: all but the batch and the channels, of integers all but the batch."""
    if not isinstance(value, Tensor):
        return value
    kept = 2 if value.is_floating_point() else 1
    return value.new_zeros((*value.shape[:kept], *other_sizes(tuple(value.shape[kept:]))[which]))


def _record(root: nn.Module, tracer: ShapeTracer, example: Arguments, name: str = "") -> Traced:
    """The graph of ``root``, checked on ``example``. Raises TraceError when it computes something else."""
    with recording(SizedProxy):
        graph = tracer.trace(root)
    _record_shapes(graph, tracer._values)
    module = fx.GraphModule(root, graph, name or type(root).__name__)
    _follow_in_place(module, tracer._values)
    _reshape_views(module.graph, tracer._values)
    module.graph.eliminate_dead_code()
    module.recompile()
    module.eval()
    expected = _returned(root, example)
    found = module(*(x.clone() for x in tracer.call.flatten(*example)))
    if len(results_of(found)) != len(results_of(expected)):
        raise TraceError("it returns another number of tensors for another number of items")
    delta = largest_difference(found, expected)
    if delta > 1e-4 * max(1.0, largest(expected)):
        raise TraceError(f"the traced graph differs from the model by {delta:.3g}: its forward changes values that were read before")
    called = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    return Traced(module, tuple(leaf for leaf in tracer.untraced if leaf.path in called), delta)


def _follow_in_place(gm: fx.GraphModule, values: Mapping[fx.Node, tuple[Any, ...]]) -> None:
    """What reads a tensor after an operation has changed it in place reads that operation's result, and so does what reads a view of
    it. Raises TraceError for a view that a graph has no other form of."""
    known = dict(values)
    for node in list(gm.graph.nodes):
        changed = node.args[0] if node.args else None
        if not isinstance(changed, fx.Node) or not in_place(node):
            continue
        order = {other: i for i, other in enumerate(gm.graph.nodes)}
        later = {user for user in changed.users if order[user] > order[node]}
        changed.replace_all_uses_with(node, delete_user_cb=later.__contains__)
        new = {changed: node}
        for view in list(order)[: order[node]]:
            if view is not changed and not in_place(view) and _share(known, view, changed):
                readers = {user for user in view.users if order[user] > order[node] and not _reads_a_size(user)}
                _follow_view(gm.graph, view, new, readers)
                if view in new and view in known:
                    known[new[view]] = known[view]


def _share(values: Mapping[fx.Node, tuple[Any, ...]], one: fx.Node, other: fx.Node) -> bool:
    """Whether two values have memory in common."""
    first, second = (values.get(node, (None,))[0] for node in (one, other))
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or not first.numel() or first.layout != torch.strided:
        return False
    if first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr() or first.dtype != second.dtype:
        return False
    mark = torch.zeros(first.untyped_storage().nbytes() // first.itemsize, dtype=torch.bool)
    mark.as_strided(first.shape, first.stride(), first.storage_offset()).fill_(True)
    return bool(mark.as_strided(second.shape, second.stride(), second.storage_offset()).any())


def _reads_a_size(node: fx.Node) -> bool:
    return (node.op == "call_method" and node.target in SIZES) or node.target is getattr


def _follow_view(graph: fx.Graph, view: fx.Node, new: dict[fx.Node, fx.Node], readers: set[fx.Node]) -> None:
    """Let ``readers`` read ``view`` anew from what was changed; ``new`` maps what was changed, and views of it, to what they are now."""
    (changed, node), read = next(iter(new.items())), source(view)
    with graph.inserting_after(list(new.values())[-1]):
        if read in new:
            new[view] = graph.node_copy(view, lambda given: new.get(given, given))
        elif readers and _is_reshaped(changed, view):
            new[view] = graph.call_method("reshape_as", (node, view))
            new[view].meta = dict(view.meta)
        elif readers:
            raise TraceError("changes values that were read before, through another view of them")
        else:
            return
    view.replace_all_uses_with(new[view], delete_user_cb=readers.__contains__)


def _is_reshaped(view: fx.Node, whole: fx.Node) -> bool:
    """Whether ``view`` holds all values of ``whole`` in their order."""
    while view is not whole:
        read = source(view)
        if read is None or not (
            in_place(view) or _name(view) in ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as")
        ):
            return False
        view = read
    return True


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else str(getattr(node.target, "__name__", ""))


def _reshape_views(graph: fx.Graph, values: Mapping[fx.Node, tuple[Any, ...]]) -> None:
    """``view`` takes one memory layout only; the same numbers may come channels last. Strides are those of the example's memory."""
    for node in list(graph.nodes):
        if node.op == "call_method" and node.target == "view" and not any(isinstance(size, torch.dtype) for size in node.args):
            node.target = "reshape"
        if _name(node) in ("as_strided", "as_strided_"):
            read = source(node)
            known = values.get(read) if read is not None else None
            if read is None or known is None or not all(x.is_contiguous() and x.untyped_storage().nbytes() == x.nbytes for x in known):
                raise TraceError("reads a tensor by the strides of its memory")
            with graph.inserting_before(node):
                node.replace_input_with(read, graph.call_method("contiguous", (read,)))


class _Whole(nn.Module):
    """Holds a model none of whose forward can be traced, so that it is a graph of one leaf."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


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
