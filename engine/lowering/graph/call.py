"""How a model is called: which tensors of its arguments are a graph's inputs, and how its results become what the model returns.

A graph takes tensors alone and gives tensors alone, each in one order. The arguments and results that a person sees are trees of
them: nested tuples, lists, dicts and objects, told in plain JSON. In a tree ``{"$": 2}`` stands for the third tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from engine.errors import EngineError
from engine.tasks.base import Batch
from engine.tasks.outputs import Outputs, named

Tree = Any
CALL = "call"
_SINGLE = {"$": 0}
_DEPTH = 16
_CONTAINERS = ("tuple", "list", "dict", "items", "object", "named")


@dataclass(frozen=True)
class Input:
    """One tensor that a program takes: ``value`` is its name there, ``name`` what it is called by the model's parameters. Of ``shape``
    those sizes are None that may be others in each call."""

    value: str
    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("N" if i == 0 and size is None else "any" if size is None else str(size) for i, size in enumerate(self.shape))
        return f"{self.name}: {_dtype(self.dtype)} ({sizes}{',' if len(self.shape) == 1 else ''})"


@dataclass(frozen=True)
class Call:
    """``args`` and ``kwargs`` are the trees of the arguments as they were traced, over ``inputs``; ``positional`` names the parameters
    that may also be given by position, in order. ``outputs`` is the tree of what the model returns, over its results."""

    inputs: tuple[Input, ...]
    args: tuple[Tree, ...]
    kwargs: Mapping[str, Tree]
    positional: tuple[str, ...]
    outputs: Tree = field(default_factory=lambda: dict(_SINGLE))

    @property
    def plain(self) -> bool:
        """One tensor by position in, one tensor out: a graph is called as the model is."""
        return self.args == (_SINGLE,) and not self.kwargs and self.outputs == _SINGLE

    @property
    def of_images(self) -> bool:
        """A ``plain`` call on float32 tensors (N, C, H, W)."""
        return self.plain and self.inputs[0].dtype == torch.float32 and len(self.inputs[0].shape) == 4

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The inputs in order. Raises EngineError for arguments of another structure than those that were traced."""
        if len(args) != len(self.args) or kwargs.keys() != self.kwargs.keys():
            args, kwargs = self._as_traced(args, kwargs)
        found: dict[int, Tensor] = {}
        for i, (value, tree) in enumerate(zip(args, self.args, strict=True)):
            _match(value, tree, self.positional[i] if i < len(self.positional) else f"argument {i + 1}", found)
        for name, tree in self.kwargs.items():
            _match(kwargs[name], tree, name, found)
        return tuple(found[i] for i in range(len(self.inputs)))

    def _as_traced(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The same arguments, by position and by name as they were traced."""
        if len(args) > max(len(self.positional), len(self.args)):
            raise EngineError(f"the model takes {self}, not {len(args)} arguments by position")
        given: dict[Any, Any] = {self.positional[i] if i < len(self.positional) else i: value for i, value in enumerate(args)}
        if twice := given.keys() & kwargs.keys():
            raise EngineError(f"the model takes {next(iter(twice))} once, not by position and by name")
        given |= kwargs
        names = [self.positional[i] if i < len(self.positional) else i for i in range(len(self.args))]
        if missing := [str(name) for name in (*names, *self.kwargs) if name not in given]:
            raise EngineError(f"the model takes {self}: {', '.join(missing)} is missing")
        ordered, by_name = [given.pop(name) for name in names], {name: given.pop(name) for name in self.kwargs}
        if more := [str(name) for name, value in given.items() if value is not None]:
            raise EngineError(f"the model was traced without {', '.join(more)}: it takes {self}")
        return ordered, by_name

    def arguments(self, inputs: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inverse of ``flatten``: arguments by position and by name, as they were traced, of the inputs in order."""
        return tuple(_built(tree, inputs) for tree in self.args), {name: _built(tree, inputs) for name, tree in self.kwargs.items()}

    def rebuild(self, results: Sequence[Any]) -> Any:
        """What the model returns, of its results in order."""
        return _built(self.outputs, results)

    def output_names(self, count: int) -> tuple[str, ...]:
        """A name for each of the ``count`` results, by its place in what the model returns."""
        found: dict[int, str] = {}
        _name(self.outputs, "", found)
        return _unique([found.get(i) or (f"output_{i}" if count > 1 else "output") for i in range(count)])

    def check(self, inputs: Sequence[Tensor]) -> None:
        """Raises EngineError for inputs of another type, rank or fixed size."""
        for given, wanted in zip(inputs, self.inputs, strict=True):
            sizes = given.shape if given.dim() == len(wanted.shape) else None
            if given.dtype != wanted.dtype or sizes is None or any(b not in (None, a) for a, b in zip(sizes, wanted.shape, strict=True)):
                raise EngineError(f"the model takes {wanted}, not {_dtype(given.dtype)} {tuple(given.shape)}")

    def __str__(self) -> str:
        return "; ".join(map(str, self.inputs))

    def to_json(self) -> dict[str, Any]:
        inputs = [{"value": i.value, "name": i.name, "dtype": _dtype(i.dtype), "shape": list(i.shape)} for i in self.inputs]
        return {
            "inputs": inputs, "args": list(self.args), "kwargs": dict(self.kwargs), "positional": list(self.positional),
            "outputs": self.outputs,
        }  # fmt: skip

    @classmethod
    def from_json(cls, given: Any, results: int) -> Call:
        """The inverse of ``to_json``, of a program with ``results`` results. Raises ValueError for what is no call."""
        inputs = tuple(_input(one) for one in given["inputs"])
        args, kwargs, positional = given["args"], given["kwargs"], given["positional"]
        if not isinstance(args, list) or not isinstance(kwargs, dict) or not all(isinstance(name, str) for name in positional):
            raise ValueError("the arguments of the call are no lists")
        places: list[int] = []
        for tree in (*args, *kwargs.values()):
            _check(tree, places)
        if sorted(places) != list(range(len(inputs))):
            raise ValueError(f"the call takes {len(inputs)} tensors and names {places}")
        returned: list[int] = []
        _check(given["outputs"], returned)
        if any(place >= results for place in returned):
            raise ValueError(f"the call returns more than {results} results")
        return cls(inputs, tuple(args), kwargs, tuple(positional), given["outputs"])


def _input(given: Any) -> Input:
    dtype, shape = getattr(torch, str(given["dtype"]), None), given["shape"]
    names = given["value"], given["name"]
    if not isinstance(dtype, torch.dtype) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"an input of type {given['dtype']!r}")
    if any(size is not None and (type(size) is not int or size < 0) for size in shape):
        raise ValueError(f"an input of shape {shape!r}")
    return Input(*names, dtype, tuple(shape))


def _check(tree: Tree, places: list[int], depth: int = _DEPTH) -> None:
    if tree is None or isinstance(tree, bool | int | float | str):
        return
    if not isinstance(tree, dict) or len(tree) != 1 or depth == 0:
        raise ValueError("the call holds what is no tree of tensors")
    ((key, inner),) = tree.items()
    if key == "$":
        if type(inner) is not int or inner < 0:
            raise ValueError(f"the call names the tensor {inner!r}")
        places.append(inner)
        return
    if key == "other" and isinstance(inner, str):
        return
    children = [value for _, value in inner] if key in ("items", "named") else inner.values() if key in ("dict", "object") else inner
    if key not in _CONTAINERS or not isinstance(inner, dict if key in ("dict", "object") else list):
        raise ValueError(f"the call holds {key!r}")
    if key == "named":
        named(tuple(str(name) for name, _ in inner))
    for child in children:
        _check(child, places, depth - 1)


def tree_of(value: Any, tensors: list[Any], is_tensor: Any = lambda value: isinstance(value, Tensor)) -> Tree:
    """The tree of ``value``, whose tensors are appended to ``tensors``. Leaves that have no JSON form are named by their type."""
    if is_tensor(value):
        tensors.append(value)
        return {"$": len(tensors) - 1}
    if value is None or isinstance(value, bool | int | float | str):
        return value

    def inner(part: Any) -> Tree:
        return tree_of(part, tensors, is_tensor)

    if isinstance(value, Outputs):
        return {"object": {str(key): inner(part) for key, part in value.items()}}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"named": [[name, inner(part)] for name, part in zip(value._fields, value, strict=True)]}
    if isinstance(value, tuple | list):
        return {"tuple" if isinstance(value, tuple) else "list": [inner(part) for part in value]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {"dict": {key: inner(part) for key, part in value.items()}}
        if all(isinstance(key, int | str) for key in value):
            return {"items": [[key, inner(part)] for key, part in value.items()]}
    return {"other": type(value).__name__}


def _match(value: Any, tree: Tree, where: str, found: dict[int, Tensor]) -> None:
    """Put the tensors of ``value`` into ``found`` by their place in ``tree``. Raises EngineError where ``value`` is another tree."""
    if not isinstance(tree, dict):
        same = value is tree or (type(value) in (bool, int, float, str) and value == tree)
        if not same:
            raise EngineError(f"the model was traced with {where}={tree!r}, not with {_said(value)}")
        return
    ((key, inner),) = tree.items()
    if key == "$":
        if not isinstance(value, Tensor):
            raise EngineError(f"the model takes a tensor for {where}, not {_said(value)}")
        found[inner] = value
    elif key in ("tuple", "list", "named"):
        if not isinstance(value, tuple | list) or len(value) != len(inner):
            raise EngineError(f"the model takes {len(inner)} values for {where}, not {_said(value)}")
        for i, (part, child) in enumerate(zip(value, inner, strict=True)):
            _match(part, child[1] if key == "named" else child, f"{where}[{i}]", found)
    elif key in ("dict", "items", "object"):
        pairs = inner.items() if isinstance(inner, dict) else inner
        if not isinstance(value, Mapping) or value.keys() != {name for name, _ in pairs}:
            names = ", ".join(str(name) for name, _ in pairs)
            raise EngineError(f"the model takes {names} in {where}, not {_said(value)}")
        for name, child in pairs:
            _match(value[name], child, f"{where}[{name!r}]", found)


def _built(tree: Tree, results: Sequence[Any]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((key, inner),) = tree.items()
    if key == "$":
        return results[inner]
    if key in ("tuple", "list"):
        return (tuple if key == "tuple" else list)(_built(part, results) for part in inner)
    if key == "named":
        return named(tuple(name for name, _ in inner))(*(_built(part, results) for _, part in inner))
    if key in ("dict", "object"):
        return (dict if key == "dict" else Outputs)({name: _built(part, results) for name, part in inner.items()})
    return {name: _built(part, results) for name, part in inner} if key == "items" else None


def _name(tree: Tree, path: str, found: dict[int, str]) -> None:
    if not isinstance(tree, dict):
        return
    ((key, inner),) = tree.items()
    if key == "$":
        found.setdefault(inner, path)
    elif key != "other":
        pairs = inner.items() if isinstance(inner, dict) else inner if key in ("items", "named") else enumerate(inner)
        for name, part in pairs:
            _name(part, f"{path}_{name}" if path else f"output_{name}" if isinstance(name, int) else str(name), found)


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {_dtype(value.dtype)} {tuple(value.shape)}"
    return repr(value) if value is None or isinstance(value, bool | int | float) else f"a {type(value).__name__}"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """Identifiers like ``names``, each another one."""
    found: list[str] = []
    for name in names:
        base = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name) or "input"
        base = f"_{base}" if base[0].isdigit() else base
        new, count = base, 1
        while new in found:
            new, count = f"{base}_{count}", count + 1
        found.append(new)
    return tuple(found)


def input_names(args: Sequence[tuple[str, Tree]], kwargs: Mapping[str, Tree], count: int) -> tuple[str, ...]:
    """A name for each of the ``count`` tensors of the arguments, by parameter and place."""
    found: dict[int, str] = {}
    for name, tree in (*args, *kwargs.items()):
        _name(tree, name, found)
    return _unique([found.get(i, "input") for i in range(count)])


def keep(graph: fx.Graph, call: Call) -> None:
    """Have ``graph`` tell how its model is called."""
    first = next(node for node in graph.nodes if node.op == "placeholder")
    first.meta[CALL] = call


def call_of(graph: fx.Graph) -> Call | None:
    """How the model of a graph is called; None where the graph was not made by ``trace``."""
    return next((node.meta[CALL] for node in graph.nodes if CALL in node.meta), None)


def of_program(graph: fx.Graph, held: bool) -> Call | None:
    """The call that a graph's program keeps, None where it takes images and gives one tensor; ``held`` tells whether it serves the sizes
    of its example alone."""
    call = call_of(graph)
    if call is None or call.of_images or held:
        return None if call is None or call.of_images else call
    free = (replace(given, shape=(*given.shape[:1], *(None for _ in given.shape[1:]))) for given in call.inputs)
    return replace(call, inputs=tuple(free))


def inputs_of(gm: fx.GraphModule, example: Batch | Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A graph's inputs in order: the tensors of a batch's arguments."""
    if isinstance(example, Tensor):
        return (example,)
    if not isinstance(example, Batch):
        return tuple(example)
    call = call_of(gm.graph)
    if call is None:
        return tuple(leaf for leaf in tree_leaves((example.args, dict(example.kwargs))) if isinstance(leaf, Tensor))
    return call.flatten(example.args, example.kwargs)


def results_of(raw: Any) -> tuple[Tensor, ...]:
    """The tensors of what a graph gives, in order."""
    return tuple(leaf for leaf in tree_leaves(raw) if isinstance(leaf, Tensor))


def largest_difference(raw: Any, expected: Any) -> float:
    """Of all numbers of all results; NaN where one of them is."""
    found = [_difference(a, b) for a, b in zip(results_of(raw), results_of(expected), strict=True)]
    return math.nan if any(map(math.isnan, found)) else max(found, default=0.0)


def _difference(a: Tensor, b: Tensor) -> float:
    if a.numel() == 0:
        return 0.0
    if not a.is_floating_point() and not a.is_complex():
        return 0.0 if torch.equal(a, b) else float((a.double() - b.double()).abs().max())
    return float((a - b).abs().max())


def largest(raw: Any) -> float:
    """The largest magnitude of the results that are floats."""
    floats = [x for x in results_of(raw) if x.is_floating_point() and x.numel()]
    return max((float(x.abs().max()) for x in floats), default=0.0)
