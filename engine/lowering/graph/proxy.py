"""Proxies that carry the values they have on two real examples, with batches of two and three images.

A size that is the same in both is a plain number, so control flow on spatial sizes and padding computed with ``max``
trace; a size that differs depends on the batch and stays symbolic, so the graph serves any batch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.proxy import Attribute, TraceError

from engine.lowering.graph.assignment import OUT_OF_PLACE, assigned, is_view
from engine.lowering.graph.kinds import SIZES
from engine.lowering.graph.sizes import Reading, Size

BATCHES = (2, 3)


class Device(Attribute):
    """The device of a traced tensor: a value of the graph, whose kind is asked of the example."""

    @property
    def _device(self) -> torch.device:
        root: Any = self.root
        device: torch.device = root.known[0].device
        return device

    @property
    def type(self) -> str:
        return self._device.type

    @property
    def index(self) -> int | None:
        return self._device.index

    def __eq__(self, other: object) -> bool:
        return self._device == (other._device if isinstance(other, Device) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = Attribute.__hash__

    def __str__(self) -> str:
        return str(self._device)


class SizedProxy(fx.Proxy):
    """A proxy that knows its value on each of the two examples, and of what it is a view by which index."""

    known: tuple[Any, ...] = ()
    part_of: tuple[SizedProxy, Any] | None = None

    def _agreed(self, read: Callable[[Any], Any]) -> Any:
        """What both examples say, or None where they differ."""
        first, second = (read(value) for value in self.known)
        return first if first == second else None

    @property
    def shape(self) -> Any:
        return self._sizes() if self._is_tensor() else self.__getattr__("shape")

    @property
    def ndim(self) -> Any:
        return self.known[0].ndim if self._is_tensor() else self.__getattr__("ndim")

    @property
    def dtype(self) -> Any:
        return self.known[0].dtype if self._is_tensor() else self.__getattr__("dtype")

    def size(self, dim: int | None = None) -> Any:
        sizes = self._sizes()
        return sizes if dim is None else sizes[dim]

    def dim(self) -> int:
        return int(self.known[0].dim())

    @property
    def _reading(self) -> Reading:
        return self.tracer.reading  # type: ignore[attr-defined, no-any-return]

    def __iter__(self) -> Iterator[Any]:
        self._reading.read = True
        if self.known and isinstance(self.known[0], (tuple, list)):
            return iter([self.__getitem__(i) for i in range(len(self.known[0]))])
        if self._is_tensor() and self.known[0].dim():
            return iter([self.__getitem__(i) for i in range(len(self))])
        return iter(super().__iter__())

    def __len__(self) -> int:
        length = self._agreed(len) if self.known else None
        if length is None:
            raise TraceError("len() of something that depends on the batch")
        self._reading.read = True
        return int(length)

    def __bool__(self) -> bool:
        # The two examples may agree by chance: only what follows from sizes, for any batch, is control flow.
        if self.known and isinstance(self.known[0], bool) and _from_sizes(self.node):
            values = self.tracer._values  # type: ignore[attr-defined]
            answers = {bool(_on_batch(self.node, values, batch)) for batch in range(1, 257)}
            if len(answers) == 1:
                self._reading.compared = True
                return answers.pop()
        raise TraceError("control flow that depends on the values of a tensor or on the batch size")

    def __getattr__(self, k: str) -> Any:
        """What both examples agree on and a batch has no part in is a plain value; a named tuple's field is its item."""
        if k.startswith("__") or not self.known:
            return super().__getattr__(k)
        if (fields := _fields(self.known[0])) and k in fields:
            return self[fields.index(k)]
        if self._is_tensor():
            if k == "device":
                return Device(self, k)
            if k == "data":
                return self.detach()
            if not hasattr(self.known[0], k):
                raise AttributeError(f"a tensor has no attribute {k!r}")
            if isinstance(getattr(self.known[0], k), bool):
                return self._agreed(lambda value: getattr(value, k))
        return super().__getattr__(k)

    def new_zeros(self, *sizes: Any, **options: Any) -> Any:
        return self._new("new_zeros", sizes, options)

    def new_ones(self, *sizes: Any, **options: Any) -> Any:
        return self._new("new_ones", sizes, options)

    def new_empty(self, *sizes: Any, **options: Any) -> Any:
        return self._new("new_empty", sizes, options)

    def _new(self, method: str, sizes: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """A tensor that no image has a part in is a constant, and may be filled as its author likes."""
        given = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
        if self._is_tensor() and not options and given and all(isinstance(size, int) for size in given):
            return getattr(self.known[0], method)(given)
        return self.tracer.create_proxy("call_method", method, (self, *sizes), options)

    def __getitem__(self, place: Any) -> Any:
        found: Any = self.tracer.create_proxy("call_function", operator.getitem, (self, place), {})
        if self._is_tensor() and is_view(place):
            found.part_of = (self, place)
        return found

    def __setitem__(self, place: Any, value: Any) -> None:
        """The tensor after the assignment, under the same name; so is the tensor that it is a part of."""
        if isinstance(value, SizedProxy) and value.part_of is not None and value.part_of[0] is self and value.part_of[1] is place:
            # ``self[place] += x`` has changed this tensor already.
            return
        self._assign(place, value)

    def _assign(self, place: Any, value: Any) -> None:
        self.becomes(assigned(self, self.known[0].dim() if self._is_tensor() else 0, place, value))

    def _changed_by(self, plain: Callable[[Any, Any], Any], other: Any) -> Any:
        """``self += other`` and its like: all that is called by this tensor's name is changed, and not what is called so from here on."""
        changed = plain(self, other)
        if self._is_tensor() and isinstance(changed, SizedProxy):
            self.becomes(changed)
            return self
        return changed

    def becomes(self, changed: Any) -> None:
        """Stand for ``changed`` from now on, and so does this part of the tensor that it was taken from."""
        self.node, self.known = changed.node, changed.known
        if self.part_of is not None:
            whole, place = self.part_of
            whole._assign(place, self)

    def _is_tensor(self) -> bool:
        return bool(self.known) and isinstance(self.known[0], Tensor)

    def _sizes(self) -> tuple[Any, ...]:
        first, second = (tuple(value.shape) for value in self.known)
        if len(first) != len(second):
            raise TraceError("a tensor whose rank depends on the batch")
        symbolic = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
        batch = {i: self.tracer.create_proxy("call_method", "size", (self, i), {}) for i in symbolic}
        self._reading.read = True
        return tuple(batch.get(i, Size.of(size, self._reading)) for i, size in enumerate(first))


def _in_place(plain: Callable[[Any, Any], Any]) -> Callable[[SizedProxy, Any], Any]:
    return lambda self, other: self._changed_by(plain, other)


for _operator, _plain in OUT_OF_PLACE.items():
    setattr(SizedProxy, f"__{_operator.__name__}__", _in_place(_plain))


def _fields(value: Any) -> tuple[str, ...]:
    """The names of a named tuple's items; torch's own results (``max``, ``topk``) keep them elsewhere."""
    if not isinstance(value, tuple):
        return ()
    fields = getattr(value, "_fields", None) or getattr(type(value), "__match_args__", None)
    return tuple(fields or ())


def _from_sizes(node: fx.Node) -> bool:
    """Whether a value follows from the shapes of tensors, and never from what they hold."""
    if node.op == "call_method":
        return node.target in (*SIZES, "is_floating_point", "is_complex")
    if node.target in (torch.is_floating_point, torch.is_complex):
        return True
    return node.op == "call_function" and bool(node.all_input_nodes) and all(_from_sizes(used) for used in node.all_input_nodes)


def _on_batch(node: fx.Node, values: dict[fx.Node, tuple[Any, ...]], batch: int) -> Any:
    """A value that follows from sizes, on another batch: a size is a linear function of it."""
    if node.op == "call_method" or node.target in (torch.is_floating_point, torch.is_complex):
        first, second = values[node]
        return first + (second - first) * (batch - BATCHES[0])
    assert callable(node.target)

    def pick(used: fx.Node) -> Any:
        return _on_batch(used, values, batch)

    args, kwargs = fx.map_arg(node.args, pick), fx.map_arg(node.kwargs, pick)
    return node.target(*args, **kwargs)
