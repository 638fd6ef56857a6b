"""Steps in floating point as ONNX: whatever way an operation was called, torch reduces it to its ``aten`` form, and that has
one translation (``aten_ops``).

A step is traced for two numbers of images, and two lengths of sequences; what differs between the two is open.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree

from engine.errors import EngineError, one_line
from engine.export.onnx.aten_types import cast, common
from engine.export.onnx.graph import Batch, Complex, Graph, Sizes, Value, dims, dtype_name

BATCHES = (2, 3)
_INSTEAD = "export without onnx and openvino, or as pt2"
Pair = tuple[Any, Any]
# Of what a number beside a tensor may be a size: what it is in one example is not what it is in another.
ARITHMETIC = frozenset(("add", "sub", "rsub", "mul", "div", "pow", "remainder", "fmod", "floor_divide", "eq", "ne", "lt", "le", "gt", "ge"))


@dataclass(frozen=True)
class At:
    """One ``aten`` call, ``name``: its arguments with a ``Value`` for each tensor, and the shape of its (first) result. ``kind`` is the
    type of the numbers beside its tensors, ``result`` that of what it gives. ``larger`` are the arguments at the larger batch, of
    which the numbers alone are of use."""

    graph: Graph
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[Any, ...]
    hint: str
    shapes: tuple[Any, ...] = ()
    name: str = ""
    target: Any = None
    kind: torch.dtype = torch.float32
    result: torch.dtype = torch.float32
    larger: tuple[Any, ...] = ()

    def on(self, *args: Any) -> At:
        """The same call on other arguments."""
        return replace(self, args=args)

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)

    def read(self, given: Any) -> str:
        """The name of a tensor or a number."""
        if isinstance(given, Value):
            return self.graph.read(given)
        return self.graph.constant(torch.tensor(given, dtype=self.kind))

    def cast(self, given: Any, kind: torch.dtype) -> Any:
        """``given``, a value or a number, with elements of another type."""
        if not isinstance(given, Value):
            return given if kind.is_floating_point else self.graph.constant(np.array(given, dtype_name(kind)))
        return cast(self.graph, given, kind, self.hint)

    def node(self, op: str, *inputs: Any, **attributes: Any) -> str:
        """A node of this call; ``inputs`` are names, values or numbers."""
        names = [given if isinstance(given, str) else self.read(given) for given in inputs]
        return self.graph.node(op, names, self.hint, **attributes)


def translate(
    graph: Graph, run: Callable[..., Any], pairs: Sequence[Pair], values: Sequence[Any], hint: str, path: str,
    known: Callable[[Tensor], str | None] = lambda tensor: None,
) -> Any:  # fmt: skip
    """Add ``run`` to ``graph``; the ``Value`` of its result, or a tuple of them.

    ``pairs`` are its arguments at both batches, ``values`` the same with a ``Value`` for each tensor. ``known`` may give the name
    of a constant that is in the graph already. Raises EngineError naming ``path`` for what has no ONNX form.
    """
    small, large = (_traced(run, [pair[i] for pair in pairs]) for i in (0, 1))
    given = [leaf for leaf in _pytree.tree_leaves(list(values)) if isinstance(leaf, Value | Complex)]
    if [n.target for n in small.graph.nodes if n.op == "call_function"] != [n.target for n in large.graph.nodes if n.op == "call_function"]:
        raise EngineError(f"{path} does other things with another number of images: it cannot be exported")
    try:
        return _Translation(graph, small, hint, path, known).run(given, list(large.graph.nodes))
    except ValueError as error:
        raise EngineError(f"{path} cannot be written as ONNX ({one_line(error, 120)}): {_INSTEAD}") from error


def _traced(run: Callable[..., Any], arguments: list[Any]) -> fx.GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    flat, spec = _pytree.tree_flatten(arguments)
    places = [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor)]

    def body(*tensors: Tensor) -> Any:
        full = list(flat)
        for place, tensor in zip(places, tensors, strict=True):
            full[place] = tensor
        return run(*_pytree.tree_unflatten(full, spec))

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # oneDNN's recurrent layers are one operation without an ONNX form; torch's own are made of ordinary ones.
        with torch.no_grad(), _without_onednn():
            traced: fx.GraphModule = make_fx(body, _simpler())(*[flat[place] for place in places])
            # Results that nobody reads, as the places of maxima.
            traced.graph.eliminate_dead_code()
            return traced
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _without_onednn() -> Iterator[None]:
    with warnings.catch_warnings():
        # Some builds of torch warn of Intel's GPUs where oneDNN's flags are touched.
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False):
            yield


@cache
def _simpler() -> dict[Any, Callable[..., Any]]:
    """torch's own decompositions of operations that have no form here."""
    from engine.export.onnx.aten_ops import OPS

    try:
        from torch._decomp import core_aten_decompositions

        known = dict(core_aten_decompositions())
    except Exception:
        # A private table: without it more operations have no form.
        return {}
    return {operator: how for operator, how in known.items() if _name(operator) not in OPS}


def _name(target: Any) -> str:
    return str(getattr(target, "overloadpacket", target).__name__).removesuffix("_")


class _Translation:
    def __init__(self, graph: Graph, traced: fx.GraphModule, hint: str, path: str, known: Callable[[Tensor], str | None]) -> None:
        self.graph, self.traced, self.hint, self.path, self.known = graph, traced, hint, path, known
        self.env: dict[fx.Node, Any] = {}

    def run(self, given: list[Value | Complex], others: list[fx.Node]) -> Any:
        """``others`` are the nodes of the same graph at the larger batch."""
        left = iter(given)
        for node, other in zip(self.traced.graph.nodes, others, strict=True):
            if node.op == "placeholder":
                self.env[node] = next(left)
            elif node.op == "get_attr":
                self.env[node] = self._constant(node)
            elif node.op == "output":
                return fx.map_arg(node.args[0], self.env.__getitem__)
            else:
                self.env[node] = self._call(node, other)
        raise AssertionError("a graph without output")

    def _constant(self, node: fx.Node) -> Value:
        tensor = getattr(self.traced, str(node.target)).detach()
        name = self.known(tensor)
        return (
            Value(f"{self.hint}_{node.name}", tuple(tensor.shape), tensor, tensor.dtype)
            if name is None
            else Value(name, tuple(tensor.shape))
        )

    def _call(self, node: fx.Node, other: fx.Node) -> Any:
        from engine.export.onnx.aten_numbers import COMPLEX
        from engine.export.onnx.aten_ops import OPS

        args: Any = fx.map_arg(node.args, self.env.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, self.env.__getitem__)
        target: Any = node.target
        shapes = _shapes(node.meta.get("val"), other.meta.get("val"), self.graph.sizes)
        leaves = _pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Value)]
        if target is operator.getitem:
            return args[0][args[1]]
        if all(t.constant is not None for t in tensors) and not any(isinstance(s, Batch) for shape in shapes for s in shape):
            return self._folded(node, args, kwargs)
        name = _name(target)
        if name in ARITHMETIC:
            args = tuple(map(self._counted, node.args, other.args, args))
        build, kinds = OPS.get(name), _kinds(node.meta.get("val"))
        result = [*kinds, torch.float32][0]
        at = At(self.graph, args, kwargs, [*shapes, ()][0], self.hint, shapes, name, target, result=result, larger=other.args)
        if name in COMPLEX or at.result.is_complex or any(isinstance(leaf, Complex) for leaf in leaves):
            return self._of_complex(at, build)
        if build is None:
            raise EngineError(f"{self.path} uses {name}, which has no ONNX form here: {_INSTEAD}")
        alike, named, kind = common(self.graph, name, node, args, kwargs, self.hint)
        made = build(replace(at, args=alike, kwargs=named, kind=kind))
        if not isinstance(made, tuple):
            return Value(made, at.shape, None, kinds[0])
        return tuple(Value(name, shape, None, kind) for name, shape, kind in zip(made, shapes, kinds, strict=False))

    def _counted(self, given: Any, other: Any, value: Any) -> Any:
        """``value``, or where it is a number that the open sizes give, ``given`` and ``other`` in both examples, what counts it in the
        file. Raises ValueError for a number that is no multiple of them."""
        if not isinstance(given, int | float) or given == other:
            return value
        if not isinstance(given, int) or not isinstance(other, int):
            raise ValueError(f"a number of {given:g} and {other:g} for two sizes")
        name = self.graph.node("Squeeze", [self.graph.shape(dims((given,), (other,), *self.graph.sizes), f"{self.hint}_count")], self.hint)
        return Value(name, (), None, torch.int64)

    @staticmethod
    def _of_complex(at: At, build: Callable[[At], Any] | None) -> Any:
        from engine.export.onnx.aten_numbers import MOVES, of_complex

        if at.name in MOVES and build is not None:
            x = at.args[0]
            return Complex(*(Value(build(at.on(part, *at.args[1:])), at.shape) for part in (x.real, x.imag)))
        made = of_complex(at)
        return made if isinstance(made, Complex) else Value(made, at.shape)

    def _folded(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """The result of a call that reads constants alone."""

        def plain(value: Any) -> Any:
            return value.constant if isinstance(value, Value) else value

        assert callable(node.target)
        got = node.target(*_pytree.tree_map(plain, tuple(args)), **_pytree.tree_map(plain, dict(kwargs)))
        hint = f"{self.hint}_{node.name}"
        return _pytree.tree_map(lambda t: Value(hint, tuple(t.shape), t, t.dtype) if isinstance(t, Tensor) else t, got)


def _kinds(made: Any) -> list[torch.dtype]:
    return [one.dtype for one in (made if isinstance(made, tuple | list) else [made]) if isinstance(one, Tensor)]


def _shapes(small: Any, large: Any, sizes: Sequence[Sizes]) -> tuple[Any, ...]:
    """The shapes of a call's result, or of each of its results."""
    if isinstance(small, tuple | list):
        return tuple(dims(a.shape, b.shape, *sizes) for a, b in zip(small, large, strict=True) if isinstance(a, Tensor))
    return (dims(small.shape, large.shape, *sizes),) if isinstance(small, Tensor) else ()
