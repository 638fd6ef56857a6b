"""An ONNX graph under construction: nodes, initializers, names, and shapes with an open batch dimension."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

OPSET, IR_VERSION = 21, 10
INPUT, OUTPUT = "images", "logits"


@dataclass(frozen=True)
class Batch:
    """A dimension of ``times`` the product of the open sizes ``of``: 0 is the number of images, the others are lengths of sequences."""

    times: int = 1
    of: tuple[int, ...] = (0,)


Dim = int | Batch
Sizes = tuple[int, int]
"""An open size in the two examples that a step is traced on."""


def dims(small: Sequence[int], large: Sequence[int], *sizes: Sizes) -> tuple[Dim, ...]:
    """The shape for any number of images, and sequences of any length, from those in two examples; ``sizes`` are the open ones, the
    number of images first. Raises ValueError for one that is no multiple of them."""
    return tuple(_dim(a, b, sizes) for a, b in zip(small, large, strict=True))


def _dim(a: int, b: int, sizes: Sequence[Sizes]) -> Dim:
    if a == b:
        return a
    for count in range(1, len(sizes) + 1):
        for some in combinations(range(len(sizes)), count):
            first, second = (math.prod(sizes[i][which] for i in some) for which in (0, 1))
            times, rest = divmod(a, first)
            if not rest and times and times * second == b:
                return Batch(times, some)
    raise ValueError(f"a size of {a} for {sizes[0][0]} images and {b} for {sizes[0][1]}")


@dataclass(frozen=True)
class Value:
    """A tensor of the graph: its ONNX name and shape. ``constant`` holds it where it does not depend on the images; it gets
    a name when it is read. ``kind`` is the type of its elements."""

    name: str
    shape: tuple[Dim, ...]
    constant: Tensor | None = None
    kind: torch.dtype = torch.float32


@dataclass(frozen=True)
class Complex:
    """A tensor of complex numbers, as two of real ones."""

    real: Value
    imag: Value

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.real.shape


class Graph:
    """Collects nodes in order. Names are made unique; equal constants are stored once. ``counted`` is an input whose size tells the
    number of items, of each of which it holds ``pixels`` numbers; ``taken`` are the names of inputs and outputs. ``sizes`` are the open
    sizes in both examples, the number of items first; ``lengths`` name an input (N, length) for each of the others."""

    def __init__(
        self, pixels: int = 1, counted: str = INPUT, taken: Sequence[str] = (INPUT, OUTPUT), sizes: Sequence[Sizes] = ((2, 3),),
        lengths: Sequence[str] = (),
    ) -> None:  # fmt: skip
        import onnx

        self.pixels, self.counted, self.sizes, self.lengths = pixels, counted, tuple(sizes), tuple(lengths)
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._taken: set[str] = set(taken)
        self._known: dict[tuple[Any, ...], str] = {}
        self._open: dict[int, str] = {}

    def name(self, hint: str) -> str:
        base = hint.replace(":q", "_q").replace(":f", "_f")
        name, n = base, 1
        while name in self._taken:
            name, n = f"{base}_{n}", n + 1
        self._taken.add(name)
        return name

    def node(self, op: str, inputs: Sequence[str], hint: str, **attributes: Any) -> str:
        """Add a node of one output; the output's name."""
        output = self.name(hint)
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), [output], name=f"{output}/{op}", **attributes))
        return output

    def constant(self, value: Any, hint: str = "constant") -> str:
        """An initializer of a tensor, an array or a number (float32, or int64 for integers)."""
        array = np.asarray(_array(value), order="C")
        key = (array.dtype.str, array.shape, hashlib.sha256(array.data if array.size else b"").digest())
        if key not in self._known:
            self._known[key] = self.name(hint)
            self.initializers.append(self.onnx.numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def int4(self, values: Tensor, hint: str) -> str:
        """An initializer of int8 numbers in -8..7, stored two to a byte."""
        from engine.numerics.packing import pack_nibbles

        name = self.name(hint)
        kind = self.onnx.TensorProto.INT4
        self.initializers.append(
            self.onnx.helper.make_tensor(name, kind, list(values.shape), pack_nibbles(values.contiguous()).numpy().tobytes(), raw=True)
        )
        return name

    def read(self, value: Value) -> str:
        """The value's name; a constant becomes an initializer."""
        return value.name if value.constant is None else self.constant(value.constant, value.name)

    def shape(self, shape: Sequence[Dim], hint: str) -> str:
        """A tensor that holds ``shape``."""
        if not any(isinstance(size, Batch) for size in shape):
            return self.constant(np.array(shape, np.int64), hint)
        parts = []
        for size in shape:
            if not isinstance(size, Batch):
                parts.append(self.constant([size]))
                continue
            part = self._size_of(size.of[0])
            for which in size.of[1:]:
                part = self.node("Mul", [part, self._size_of(which)], hint)
            parts.append(part if size.times == 1 else self.node("Mul", [part, self.constant([size.times])], hint))
        return self.node("Concat", parts, hint, axis=0)

    def _size_of(self, which: int) -> str:
        """A tensor of one number, an open size."""
        if which not in self._open and self.lengths:
            shape = self.node("Shape", [self.lengths[which - 1] if which else self.counted], "shape")
            self._open[which] = self.node("Gather", [shape, self.constant([min(which, 1)])], "length" if which else "batch")
        elif which not in self._open:
            # By the count of elements: OpenVINO reads a Shape off whichever value has as many images, and where that is what a
            # convolution gives before it is rounded, it adds the first channel's bias to all channels.
            count = self.node("Size", [self.counted], "size")
            self._open[which] = self.node("Div", [count, self.constant([self.pixels])], "batch")
        return self._open[which]

    def reshape(self, name: str, shape: Sequence[Dim], hint: str) -> str:
        """``name`` in another shape of as many elements."""
        if 0 in shape or sum(isinstance(size, Batch) for size in shape) > 1:
            return self.node("Reshape", [name, self.shape(shape, f"{hint}_shape")], hint)
        target = [-1 if isinstance(size, Batch) else size for size in shape]
        return self.node("Reshape", [name, self.constant(target)], hint)

    def model(self, inputs: Sequence[Value], outputs: Sequence[Value], results: Sequence[str], about: Mapping[str, str]) -> Any:
        """The checked ``ModelProto``, with ``inputs`` and ``outputs`` by name; ``results`` names what is computed for each output."""
        helper = self.onnx.helper
        for value, result in zip(outputs, results, strict=True):
            self.nodes.append(helper.make_node("Identity", [result], [value.name], name=f"{value.name}/Identity"))
        graph = helper.make_graph(self.nodes, "qtui", list(map(self._info, inputs)), list(map(self._info, outputs)), self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="qtui")
        helper.set_model_props(model, dict(about))
        self.onnx.checker.check_model(model, full_check=True)
        return model

    def _info(self, value: Value) -> Any:
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=value.kind).numpy().dtype)
        return self.onnx.helper.make_tensor_value_info(value.name, kind, list(map(_size, value.shape)))


def _size(size: Dim) -> int | str:
    """An ONNX dimension: what is as many as the items is ``batch``, a length of sequences ``length``."""
    if not isinstance(size, Batch):
        return size
    names = "_".join("batch" if which == 0 else f"length{which if which > 1 else ''}" for which in size.of)
    return names if size.times == 1 else f"{names}_{size.times}"


def _array(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().contiguous().numpy()
    if isinstance(value, np.ndarray):
        return value
    array = np.array(value)
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
