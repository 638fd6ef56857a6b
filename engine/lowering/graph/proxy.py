"""Proxies that carry the values they have on two real examples, with batches of two and three images.

A size that is the same in both is a plain number, so control flow on spatial sizes and padding computed with ``max``
trace; a size that differs depends on the batch and stays symbolic, so the graph serves any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx
from torch.fx.proxy import TraceError

from engine.lowering.graph.kinds import SIZES
from engine.lowering.graph.sizes import Reading, Size

BATCHES = (2, 3)


class SizedProxy(fx.Proxy):
    """A proxy that knows its value on each of the two examples."""

    values: tuple[Any, ...] = ()

    def _agreed(self, read: Callable[[Any], Any]) -> Any:
        """What both examples say, or None where they differ."""
        first, second = (read(value) for value in self.values)
        return first if first == second else None

    @property
    def shape(self) -> Any:
        return self._sizes() if self._is_tensor() else self.__getattr__("shape")

    @property
    def ndim(self) -> Any:
        return self.values[0].ndim if self._is_tensor() else self.__getattr__("ndim")

    @property
    def dtype(self) -> Any:
        return self.values[0].dtype if self._is_tensor() else self.__getattr__("dtype")

    def size(self, dim: int | None = None) -> Any:
        sizes = self._sizes()
        return sizes if dim is None else sizes[dim]

    def dim(self) -> int:
        return int(self.values[0].dim())

    @property
    def _reading(self) -> Reading:
        return self.tracer.reading  # type: ignore[attr-defined, no-any-return]

    def __iter__(self) -> Iterator[Any]:
        self._reading.read = True
        if self.values and isinstance(self.values[0], (tuple, list)):
            return iter([self.__getitem__(i) for i in range(len(self.values[0]))])
        if self._is_tensor() and self.values[0].dim():
            return iter([self.__getitem__(i) for i in range(len(self))])
        return iter(super().__iter__())

    def __len__(self) -> int:
        length = self._agreed(len) if self.values else None
        if length is None:
            raise TraceError("len() of something that depends on the batch")
        self._reading.read = True
        return int(length)

    def __bool__(self) -> bool:
        # The two examples may agree by chance: only what follows from sizes, for any batch, is control flow.
        if self.values and isinstance(self.values[0], bool) and _from_sizes(self.node):
            values = self.tracer._values  # type: ignore[attr-defined]
            answers = {bool(_on_batch(self.node, values, batch)) for batch in range(1, 257)}
            if len(answers) == 1:
                self._reading.compared = True
                return answers.pop()
        raise TraceError("control flow that depends on the values of a tensor or on the batch size")

    def new_zeros(self, *sizes: Any, **options: Any) -> Any:
        """A tensor that no image has a part in is a constant, and may be filled as its author likes."""
        given = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
        if self._is_tensor() and not options and all(isinstance(size, int) for size in given):
            return self.values[0].new_zeros(given)
        return self.tracer.create_proxy("call_method", "new_zeros", (self, *sizes), options)

    def __setitem__(self, place: Any, value: Any) -> None:
        raise TraceError("changes a part of a tensor in place (an assignment such as y[i] = …)")

    def _is_tensor(self) -> bool:
        return bool(self.values) and isinstance(self.values[0], Tensor)

    def _sizes(self) -> tuple[Any, ...]:
        first, second = (tuple(value.shape) for value in self.values)
        if len(first) != len(second):
            raise TraceError("a tensor whose rank depends on the batch")
        symbolic = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
        batch = {i: self.tracer.create_proxy("call_method", "size", (self, i), {}) for i in symbolic}
        self._reading.read = True
        return tuple(batch.get(i, Size.of(size, self._reading)) for i, size in enumerate(first))


def _from_sizes(node: fx.Node) -> bool:
    """Whether a value follows from the shapes of tensors, and never from what they hold."""
    if node.op == "call_method":
        return node.target in (*SIZES, "is_floating_point", "is_complex")
    return node.op == "call_function" and bool(node.all_input_nodes) and all(_from_sizes(used) for used in node.all_input_nodes)


def _on_batch(node: fx.Node, values: dict[fx.Node, tuple[Any, ...]], batch: int) -> Any:
    """A value that follows from sizes, on another batch: a size is a linear function of it."""
    if node.op == "call_method":
        first, second = values[node]
        return first + (second - first) * (batch - BATCHES[0])
    assert callable(node.target)

    def pick(used: fx.Node) -> Any:
        return _on_batch(used, values, batch)

    args, kwargs = fx.map_arg(node.args, pick), fx.map_arg(node.kwargs, pick)
    return node.target(*args, **kwargs)
