"""A program tied to one input shape: every value has its place in memory, every step knows its addresses.

The first images of a shape are computed step by step to learn the shapes between; then each step is fixed to memory that
is shared by values that do not live at the same time. A pass is then a list of calls without arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.lowering.graph.program import Step

# What a program is given or gives: one tensor, or several in order.
Tensors = Tensor | tuple[Tensor, ...]
Run = Callable[[Any], None]
# These only look at their first argument: what they give follows it, and nothing is to be done again.
_VIEWS = frozenset({
    "torch.flatten", "torch.reshape", "torch.permute", "torch.transpose", "torch.squeeze", "torch.unsqueeze", "torch.chunk",
    "torch.split", "torch.narrow", "torch.select", "operator.getitem", "Tensor.flatten", "Tensor.reshape", "Tensor.view",
    "Tensor.permute", "Tensor.transpose", "Tensor.squeeze", "Tensor.unsqueeze", "Tensor.chunk", "Tensor.split", "Tensor.size",
    "Tensor.expand", "Tensor.narrow", "Tensor.dim", "attribute.shape", "attribute.ndim", "attribute.dtype", "attribute.device",
})  # fmt: skip
_ALIGNED = 64


class NotFixed(Exception):
    """A step whose results have no fixed place."""


@dataclass(frozen=True)
class Fixed:
    """``run`` in order computes ``result`` from inputs of one shape and layout. ``owners`` gives for each of ``run`` the place of the
    program's step that it carries out."""

    run: tuple[Run, ...]
    result: Tensors
    owners: tuple[int, ...] = ()

    def __call__(self, given: Tensors) -> Tensors:
        for step in self.run:
            step(given)
        return tuple(x.clone() for x in self.result) if isinstance(self.result, tuple) else self.result.clone()


class _Memory:
    """Buffers that are given back when the last value in them has been read."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """A place like a dense tensor, and the buffer that it is in."""
        size = like.numel() * like.element_size()
        fitting = [space for space in self._free if size <= space.numel() <= 4 * size + 4096]
        if fitting:
            space = min(fitting, key=Tensor.numel)
            self._free = [other for other in self._free if other is not space]
        else:
            space = torch.empty(size + _ALIGNED, dtype=torch.uint8)
            space = space[-space.data_ptr() % _ALIGNED :][:size]
        return space[:size].view(like.dtype).as_strided(like.shape, like.stride()), space

    def give(self, space: Tensor) -> None:
        self._free.append(space)


class Fixing:
    """Builds a ``Fixed`` of one input or none, or of several, by their names; so too with the results."""

    def __init__(
        self,
        steps: Sequence[Step],
        functions: Sequence[Callable[..., Any]],
        inputs: str | tuple[str, ...] | None,
        result: str | tuple[str, ...],
    ) -> None:
        self._steps, self._functions, self._result = steps, functions, result
        self._several = isinstance(inputs, tuple)
        names = inputs if isinstance(inputs, tuple) else (inputs,) if inputs is not None else ()
        self._inputs = {name: place for place, name in enumerate(names)}
        self._results = result if isinstance(result, tuple) else (result,)
        self._held: set[str] = set()
        self._memory = _Memory()
        self._values: dict[str, Any] = {}
        # Values that share memory are one: the buffer, or None for what is nobody's to reuse.
        self._space: dict[str, Tensor | None] = {}
        self._run: list[Run] = []
        self._last: dict[str, int] = {}

    def build(self, given: Tensors) -> Fixed:
        """For inputs like ``given``. Raises NotFixed where a value has no fixed place."""
        for index, step in enumerate(self._steps):
            for name in step.inputs:
                self._last[name] = index
        self._last |= dict.fromkeys(self._results, len(self._steps))
        for name, x in zip(self._inputs, given if isinstance(given, tuple) else (given,), strict=False):
            self._values[name], self._space[name] = x, None
            if name in self._results or any(name in step.inputs and step.op != "quantize" for step in self._steps):
                self._hold(name, x)
        # Inputs are copied for the first step.
        owners = [0] * len(self._run)
        for index, (step, function) in enumerate(zip(self._steps, self._functions, strict=True)):
            self._fix(index, step, function)
            owners += [index] * (len(self._run) - len(owners))
            self._release(index)
        results = tuple(self._values[name] for name in self._results)
        if not all(isinstance(result, Tensor) for result in results):
            raise NotFixed("a result is not a tensor")
        return Fixed(tuple(self._run), results if isinstance(self._result, tuple) else results[0], tuple(owners))

    def _hold(self, name: str, x: Tensor) -> None:
        """Inputs that are not only quantized are copied to a place of their own."""
        if not _dense(x):
            raise NotFixed(f"{name} is not dense in memory")
        held = x.clone()
        self._values[name] = held
        self._held.add(name)
        self._add(name, lambda given: _copy(held, given))

    def _add(self, name: str, run: Run) -> None:
        """Have ``run`` work on the input ``name`` at each pass."""
        if not self._several:
            self._run.append(run)
            return
        place = self._inputs[name]
        self._run.append(lambda given: run(given[place]))

    def _release(self, index: int) -> None:
        """Buffers none of whose values is read later are free."""
        over = {name for name in self._space if self._last.get(name, -1) <= index and self._last.get(name, index) != len(self._steps)}
        for name in over:
            space = self._space.pop(name)
            if space is not None and not any(other is space for other in self._space.values()):
                self._memory.give(space)

    def _fix(self, index: int, step: Step, function: Callable[..., Any]) -> None:
        inputs = tuple(self._values[name] for name in step.inputs)
        if step.op == "quantize" and step.inputs[0] in self._inputs and step.inputs[0] not in self._held:
            self._quantized(step, function, inputs[0])
        elif step.op == "layer" and len(inputs) == 2 and hasattr(function, "fix"):
            self._residual(index, step, function, inputs)
        else:
            self._plain(step, function, inputs)

    def _quantized(self, step: Step, function: Any, x: Tensor) -> None:
        sample = function(x)
        out = self._keep(step, sample)
        run = function.head(x, out) if hasattr(function, "head") else None
        self._add(step.inputs[0], run or (lambda given: _copy(out, function(given))))

    def _residual(self, index: int, step: Step, function: Any, inputs: tuple[Tensor, ...]) -> None:
        """The layer adds into what holds the residual, when nobody else reads that later."""
        x, other = self._readable(function, inputs[:1])[0], inputs[1]
        space = self._space[step.inputs[1]]
        dense = other.is_contiguous(memory_format=torch.channels_last)
        sharing = [name for name, held in self._space.items() if held is space and space is not None]
        own = dense and space is not None and all(self._last.get(name, -1) <= index for name in sharing)
        own = own and self._space[step.inputs[0]] is not space
        if own:
            out, self._space[step.output] = other, space
        else:
            out = self._keep(step, other.contiguous(memory_format=torch.channels_last))
            self._run.append(lambda _: _copy(out, other))
        self._values[step.output] = out
        self._run.append(function.fix((x,), out))
        # What follows is made on true values: some functions refuse others.
        function.fix((x,), out)(x)

    def _plain(self, step: Step, function: Any, inputs: tuple[Any, ...]) -> None:
        if hasattr(function, "fix") and all(isinstance(x, Tensor) for x in inputs):
            inputs = self._readable(function, inputs)
            out = self._keep(step, function(*inputs))
            run = function.fix(inputs, out)
            self._run.append(run or (lambda _: _copy(out, function(*inputs))))
            return
        sample = function(*inputs)
        if step.op == "constant" or not (isinstance(sample, Tensor) or any(isinstance(x, Tensor) for x in inputs)):
            self._values[step.output], self._space[step.output] = sample, None
            return
        if step.op == "identity" or step.attrs.get("function") in _VIEWS:
            shared = _storage(sample)
            if shared is None or any(shared == _storage(x) for x in inputs if isinstance(x, Tensor | tuple | list)):
                self._values[step.output] = sample
                self._space[step.output] = self._space[step.inputs[0]] if step.inputs else None
                return
        if not isinstance(sample, Tensor):
            raise NotFixed(f"{step.output} is a {type(sample).__name__}")
        if any(isinstance(x, Tensor) and _storage(x) == _storage(sample) for x in inputs):
            # Done in place, or a view that may one day be a copy.
            tensors = {name: x for name, x in zip(step.inputs, inputs, strict=True) if isinstance(x, Tensor)}
            first = next(name for name, x in tensors.items() if _storage(x) == _storage(sample))
            self._values[step.output], self._space[step.output] = sample, self._space[first]
            self._run.append(lambda _: _copy(sample, function(*inputs)))
            return
        out = self._keep(step, sample)
        self._run.append(lambda _: _copy(out, function(*inputs)))

    def _readable(self, function: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the function can read as it lies: copies, made at each pass, of what it cannot."""
        found = []
        for x in inputs:
            readable = function.dense(x)
            if readable is not x:
                self._run.append(partial(_copied, readable, x))
            found.append(readable)
        return tuple(found)

    def _keep(self, step: Step, sample: Tensor) -> Tensor:
        """The place of a step's result. It may not be that of one of its inputs, which are still held."""
        if not _dense(sample):
            raise NotFixed(f"{step.output} is not dense in memory")
        self._values[step.output], self._space[step.output] = self._memory.take(sample)
        out: Tensor = self._values[step.output]
        # What follows is made on true values: some functions refuse others.
        return out.copy_(sample)


def mirrored(x: Tensors) -> Tensors:
    """Inputs in the layout of ``x`` that are not the same: ``x`` read backwards. ``x`` itself where its places overlap."""
    if isinstance(x, tuple):
        return tuple(_mirrored(one) for one in x)
    return _mirrored(x)


def _mirrored(x: Tensor) -> Tensor:
    if not _dense(x):
        return x
    return torch.empty_like(x, memory_format=torch.preserve_format).copy_(x.flip(list(range(x.dim()))))


def _copy(out: Tensor, value: Tensor) -> None:
    if value.data_ptr() != out.data_ptr():
        out.copy_(value)


def _copied(out: Tensor, value: Tensor, _: Any) -> None:
    out.copy_(value)


def _dense(x: Tensor) -> bool:
    return torch.ops.aten.is_non_overlapping_and_dense(x)  # type: ignore[no-any-return]


def _storage(x: Any) -> int | None:
    """The memory that a tensor, or the tensors of a tuple, lie in; None for plain numbers."""
    if isinstance(x, Tensor):
        return x.untyped_storage().data_ptr()
    if isinstance(x, tuple | list):
        found = {_storage(part) for part in x}
        if len(found) == 1:
            return found.pop()
        if None not in found or len(found) > 1:
            return -1
    return None
