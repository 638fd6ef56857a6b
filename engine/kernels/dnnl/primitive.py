"""Memory descriptors, attributes and primitives: oneDNN's objects, freed with the Python objects that hold them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from ctypes import Structure, c_int, c_void_p
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.kernels.dnnl.library import Library, dims

SRC, SRC_1, WEIGHTS, BIAS, DST = 1, 2, 33, 41, 17
SCALES, ZERO_POINTS = 4096, 8192
INFERENCE, DIRECT = 96, 1
_ANY = 1
_QUERY = {SRC: 129, WEIGHTS: 131, DST: 133}
TYPES = {torch.float32: 3, torch.int32: 4, torch.int8: 5, torch.uint8: 6}
ELTWISE = {
    "relu": 0x20, "tanh": 0x21, "linear": 0x26, "hardsigmoid": 0x28, "sigmoid": 0x29, "gelu_tanh": 0x2B, "silu": 0x2C, "clip": 0x2F,
    "gelu": 0x31,
    "mish": 0x33, "hardswish": 0x34,
}  # fmt: skip
ADD, MULTIPLY = 0x1FFF0, 0x1FFF1
_POST_OPERAND = 32768
_ALIGNED = 64


class Handle:
    """An object of oneDNN by its address; ``keep`` lives as long."""

    def __init__(self, library: Library, kind: str, address: int, keep: Any = None, owned: bool = True) -> None:
        self.address, self.keep = address, keep
        if owned:
            weakref.finalize(self, library.destroy[kind], address)


def descriptor(library: Library, shape: Sequence[int], dtype: torch.dtype, strides: Sequence[int] | None = None) -> Handle:
    """Memory of a shape and type; without ``strides`` (in elements) a primitive chooses the layout."""
    n, size = len(shape), dims(shape)
    if strides is None:
        made = library.make("memory_desc_create_with_tag", n, size, TYPES[dtype], _ANY)
    else:
        made = library.make("memory_desc_create_with_strides", n, size, TYPES[dtype], dims(strides))
    return Handle(library, "memory_desc", made)


def channels_last(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense (N, C, ...) tensor whose channels lie side by side."""
    strides, step = [0] * len(shape), shape[1]
    strides[1] = 1
    for axis in range(len(shape) - 1, 1, -1):
        strides[axis], step = step, step * shape[axis]
    strides[0] = step
    return tuple(strides)


def memory(library: Library, about: Handle, tensor: Tensor | None = None) -> Handle:
    """Memory at a tensor's address; without one, the address is set later."""
    address = None if tensor is None else tensor.data_ptr()
    return Handle(library, "memory", library.make("memory_create", about.address, library.engine, address), (about, tensor))


def vector(library: Library, values: Tensor) -> Handle:
    """A one-dimensional constant, as scales and zero points are passed."""
    return memory(library, descriptor(library, values.shape, values.dtype, (1,)), values)


@dataclass
class Attributes:
    """What happens around a primitive: scales and zero points by argument, then what is done to the result, in order."""

    scales: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    zero_points: dict[int, int] = field(default_factory=dict)
    post: list[tuple[str, float, float]] = field(default_factory=list)
    added: dict[int, Handle] = field(default_factory=dict)

    def scale(self, argument: int, value: float | Tensor, mask: int = 0) -> None:
        """One factor for all, or with ``mask`` (a bit for each axis) one for each index."""
        self.scales[argument] = (value if isinstance(value, Tensor) else torch.tensor([value]), mask)

    def then(self, what: str, alpha: float = 0.0, beta: float = 0.0) -> None:
        """A function of ``ELTWISE``, or ``sum``: ``alpha`` times what the destination held (uint8)."""
        self.post.append((what, alpha, beta))

    def then_add(self, about: Handle) -> int:
        """Add a tensor of the layout ``about`` that is broadcast; gives the argument that it is passed as."""
        self.added[len(self.post)] = about
        self.post.append(("add", 0.0, 0.0))
        return _POST_OPERAND * len(self.post) | SRC_1

    def handle(self, library: Library) -> Handle:
        made = Handle(library, "primitive_attr", library.make("primitive_attr_create"))
        for argument, (_, mask) in self.scales.items():
            library.call("primitive_attr_set_scales_mask", made.address, argument, mask)
        for argument in self.zero_points:
            library.call("primitive_attr_set_zero_points_mask", made.address, argument, 0)
        if self.post:
            post = Handle(library, "post_ops", library.make("post_ops_create"))
            for place, (what, alpha, beta) in enumerate(self.post):
                if place in self.added:
                    library.call("post_ops_append_binary", post.address, ADD, self.added[place].address)
                elif what == "sum":
                    library.call("post_ops_append_sum", post.address, alpha, 0, TYPES[torch.uint8])
                else:
                    library.call("post_ops_append_eltwise", post.address, ELTWISE[what], alpha, beta)
            library.call("primitive_attr_set_post_ops", made.address, post.address)
        return made

    def arguments(self, library: Library) -> list[tuple[int, Handle]]:
        found = [(SCALES | argument, vector(library, values)) for argument, (values, _) in self.scales.items()]
        for argument, zero in self.zero_points.items():
            found.append((ZERO_POINTS | argument, vector(library, torch.tensor([zero], dtype=torch.int32))))
        return found


class _Argument(Structure):
    _fields_ = [("argument", c_int), ("memory", c_void_p)]


class Primitive:
    """A primitive on memory of given shapes.

    ``constants`` are arguments that stay; ``moving`` those that change from call to call, in the order of ``bind``.
    """

    def __init__(
        self, library: Library, about: Handle, constants: Sequence[tuple[int, Handle]], moving: Sequence[tuple[int, Handle]]
    ) -> None:
        self._library, self._constants, self._moving = library, list(constants), list(moving)
        self._handle = Handle(library, "primitive", library.make("primitive_create", about.address))

    def bind(self, *tensors: Tensor) -> Bound:
        """On these tensors, which the result keeps alive. Their memory must be dense in the layout that was described."""
        moving = [memory(self._library, about, tensor) for (_, about), tensor in zip(self._moving, tensors, strict=True)]
        arguments = [*zip((argument for argument, _ in self._moving), moving, strict=True), *self._constants]
        return Bound(self._library, self._handle, arguments, moving)


class Bound:
    """A primitive with all its arguments: ``run`` it, or ``on`` other tensors of the same shapes."""

    def __init__(self, library: Library, primitive: Handle, arguments: Sequence[tuple[int, Handle]], moving: Sequence[Handle]) -> None:
        self._keep = (primitive, arguments)
        self._array = (_Argument * len(arguments))(*[_Argument(argument, held.address) for argument, held in arguments])
        self._call = (primitive.address, library.stream, len(arguments), self._array)
        self._execute, self._set, self._moving = library.execute, library.set_handle, [held.address for held in moving]

    def run(self, _: object = None) -> None:
        if self._execute(*self._call):
            raise EngineError("oneDNN could not run a primitive: out of memory?")

    def on(self, *tensors: Tensor) -> None:
        for handle, tensor in zip(self._moving, tensors, strict=True):
            self._set(handle, tensor.data_ptr())
        self.run()


def described(library: Library, name: str, *arguments: Any) -> Handle:
    """A primitive's description by oneDNN's function. Raises EngineError where oneDNN has no implementation."""
    return Handle(library, "primitive_desc", library.make(f"{name}_primitive_desc_create", *arguments))


def wanted(library: Library, about: Handle, argument: int) -> Handle:
    """The layout that a primitive chose for an argument."""
    return Handle(library, "memory_desc", library.query_md(about.address, _QUERY[argument], 0), about, owned=False)


def reordered(library: Library, tensor: Tensor, target: Handle) -> Handle:
    """A constant tensor in the layout ``target``: its memory."""
    space = torch.empty(library.size_of(target.address) + _ALIGNED, dtype=torch.uint8)
    space = space[-space.data_ptr() % _ALIGNED :]
    source = descriptor(library, tensor.shape, tensor.dtype, tensor.stride())
    to = memory(library, target, space)
    about = described(library, "reorder", source.address, library.engine, target.address, library.engine, None)
    Primitive(library, about, [], [(SRC, source), (DST, target)]).bind(tensor, space).run()
    return to


def addresses(handles: Iterable[Handle | None]) -> list[int | None]:
    return [None if handle is None else handle.address for handle in handles]
