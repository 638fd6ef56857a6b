"""Matrices on integers as ONNX Runtime's kernels read them: MatMulNBits, and rows of the same integers for embeddings.

MatMulNBits (com.microsoft) has blocks of 16, 32, 64, 128 or 256 inputs with one scale each, and integers of 4 or 8 bits. A group
that is a multiple of a block has its scale once a block; 2 and 3 bits are stored in the nibbles of 4, 5 to 7 in bytes. Where the
recipe rounds activations token by token, MatMulInteger does what it says, and reads long texts faster than MatMulNBits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.export.onnx.graph import Graph
from engine.numerics.qtensor import QTensor
from engine.numerics.quantized_matrix import QuantizedMatrix

_LARGEST = 256
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Blocked:
    """``packed`` uint8 (rows, blocks, block * bits / 8), ``scale`` float16 (rows, blocks), ``zero`` uint8 (rows, blocks), or None where
    zero is the middle. ``inputs`` are those of a row before the last block was filled up."""

    packed: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    block: int
    inputs: int

    @property
    def middle(self) -> int:
        return 1 << (self.bits - 1)

    def zeros(self) -> Tensor:
        """The zero points as the kernel reads them: uint8 (rows, bytes), two to a byte where there are 4 bits."""
        assert self.zero is not None
        if self.bits == 8:
            return self.zero
        even = torch.nn.functional.pad(self.zero, (0, self.zero.shape[1] % 2))
        return even[:, ::2] | (even[:, 1::2] << 4)


def blocked(weight: QTensor, path: str) -> Blocked:
    """Raises EngineError for groups that are no multiple of 16, and for weights that are no integers."""
    if weight.format.levels:
        raise EngineError(f"no kernel of ONNX Runtime has weights in {weight.format.name}, which {path} is: export to safetensors")
    rows, inputs = weight.codes.shape
    size = weight.scheme.size(inputs)
    block = _block(size, inputs, path)
    bits = 4 if weight.scheme.bits <= 4 else 8
    blocks = -(-inputs // block)
    middle = (1 << (bits - 1)) if weight.scheme.symmetric else 0
    codes = (weight.codes.to(torch.int16) + middle).to(torch.uint8)
    codes = torch.nn.functional.pad(codes, (0, blocks * block - inputs)).reshape(rows, blocks, block)
    packed = codes if bits == 8 else codes[:, :, ::2] | (codes[:, :, 1::2] << 4)
    zero = None if weight.zero is None else _spread(weight.zero, size, block, blocks)
    return Blocked(packed.contiguous(), _spread(weight.scale, size, block, blocks), zero, bits, block, inputs)


def _block(size: int, inputs: int, path: str) -> int:
    if size >= inputs:
        return min(max(1 << (inputs - 1).bit_length(), 16), _LARGEST)
    block = min(size & -size, _LARGEST)
    if block < 16:
        raise EngineError(f"ONNX Runtime's MatMulNBits has groups of 16 inputs and multiples of it: {path} has groups of {size}")
    return block


def _spread(values: Tensor, size: int, block: int, blocks: int) -> Tensor:
    """One value for each block, from one for each group."""
    if values.shape[1] == 1:
        return values.expand(-1, blocks).contiguous()
    return values.repeat_interleave(size // block, 1)[:, :blocks].contiguous()


def per_token(matrix: QuantizedMatrix) -> bool:
    """Whether activations are rounded token by token to 8 bits, and the weights are 8 bits with one step an output."""
    asked, spec = matrix.activations, matrix.weight.scheme
    whole = spec.size(matrix.weight.codes.shape[1]) == matrix.weight.codes.shape[1]
    plain = asked is not None and not (asked.format or asked.group_size)
    return asked is not None and plain and asked.dynamic and asked.bits == 8 and spec.bits == 8 and spec.symmetric and whole


class Matrices:
    """Writes matrices into ``graph``; one that is read as an embedding and as a head is stored once. ``accuracy`` is the kernel's
    ``accuracy_level`` where the recipe rounds activations: at 4 it rounds them to 8 bits in each block and multiplies integers, at 1
    it computes in float32."""

    def __init__(self, graph: Graph, accuracy: int) -> None:
        self.graph, self.accuracy = graph, accuracy
        self._held: dict[int, tuple[Blocked, list[str]]] = {}

    def multiply(self, x: str, weight: QTensor, bias: Tensor | None, path: str, floats: bool = False) -> str:
        """``x @ weight.T + bias``; with ``floats`` the recipe leaves ``x`` in float32, and so does the kernel."""
        form, (packed, scale, *zeros) = self._stored(weight, path)
        graph = self.graph
        step = graph.node("Cast", [scale], f"{path}/step", to=graph.onnx.TensorProto.FLOAT)
        names = [x, packed, step, zeros[0] if zeros else "", "", graph.constant(bias, f"{path}.bias") if bias is not None else ""]
        while not names[-1]:
            names.pop()
        return graph.node(
            "MatMulNBits", names, path, domain=MICROSOFT, K=form.inputs, N=form.packed.shape[0], bits=form.bits, block_size=form.block,
            accuracy_level=1 if floats else self.accuracy,
        )  # fmt: skip

    def multiply_tokens(self, x: str, weight: QTensor, bias: Tensor | None, path: str) -> str:
        """``x @ weight.T + bias`` with each row of ``x`` rounded to 127 steps of its largest magnitude, in integers: what
        ``kernels.dnnl.dynamic`` computes. ``weight`` is as ``per_token`` asks."""
        graph, kind = self.graph, self.graph.onnx.TensorProto
        largest = graph.node("ReduceMax", [graph.node("Abs", [x], path), graph.constant([-1])], path, keepdims=1)
        step = graph.node("Div", [graph.node("Max", [largest, graph.constant(1e-30)], path), graph.constant(127.0)], path)
        zero = graph.constant(torch.tensor(128, dtype=torch.uint8))
        integers = graph.node("QuantizeLinear", [graph.node("Div", [x, step], path), graph.constant(1.0), zero], path)
        stored = graph.constant(weight.codes.t().contiguous(), f"{path}.integers")
        sums = graph.node("Cast", [graph.node("MatMulInteger", [integers, stored, zero], path)], path, to=kind.FLOAT)
        scale = graph.node("Cast", [graph.constant(weight.scale[:, 0].contiguous(), f"{path}.scale")], f"{path}/step", to=kind.FLOAT)
        made = graph.node("Mul", [graph.node("Mul", [sums, scale], path), step], path)
        return made if bias is None else graph.node("Add", [made, graph.constant(bias, f"{path}.bias")], path)

    def rows(self, ids: str, weight: QTensor, path: str) -> str:
        """The rows of ``weight`` that ``ids`` (N, T) name, in float32."""
        form, (packed, scale, *_) = self._stored(weight, path)
        graph, kind = self.graph, self.graph.onnx.TensorProto
        taken = graph.node("Gather", [packed, ids], path, axis=0)
        if form.bits == 4:
            low = graph.node("BitwiseAnd", [taken, self._byte(15)], path)
            high = graph.node("BitShift", [taken, self._byte(4)], path, direction="RIGHT")
            last = graph.constant([-1])
            pair = graph.node("Concat", [graph.node("Unsqueeze", [part, last], path) for part in (low, high)], path, axis=-1)
            taken = graph.node("Reshape", [pair, graph.constant([0, 0, form.packed.shape[1], form.block])], path)
        numbers = graph.node("Cast", [taken], path, to=kind.FLOAT)
        zero = (
            self._gathered(graph.constant(form.zero, f"{path}.zero"), ids, path)
            if form.zero is not None
            else graph.constant(float(form.middle))
        )
        made = graph.node("Mul", [graph.node("Sub", [numbers, zero], path), self._gathered(scale, ids, path)], path)
        made = graph.node("Reshape", [made, graph.constant([0, 0, -1])], path)
        if form.packed.shape[1] * form.block != form.inputs:
            made = graph.node("Slice", [made, *(graph.constant([n]) for n in (0, form.inputs, 2, 1))], path)
        return made

    def _gathered(self, values: str, ids: str, path: str) -> str:
        """One number a block, of the rows that ``ids`` name: (N, T, blocks, 1) in float32."""
        graph = self.graph
        found = graph.node("Cast", [graph.node("Gather", [values, ids], path, axis=0)], path, to=graph.onnx.TensorProto.FLOAT)
        return graph.node("Unsqueeze", [found, graph.constant([-1])], path)

    def _byte(self, number: int) -> str:
        return self.graph.constant(torch.tensor(number, dtype=torch.uint8))

    def _stored(self, weight: QTensor, path: str) -> tuple[Blocked, list[str]]:
        key = id(weight.codes)
        if key not in self._held:
            form, constant = blocked(weight, path), self.graph.constant
            names = [constant(form.packed, f"{path}.packed"), constant(form.scale, f"{path}.scale")]
            if form.zero is not None:
                names.append(constant(form.zeros(), f"{path}.zeros"))
            self._held[key] = form, names
        return self._held[key]


def note(weights: dict[str, QTensor]) -> str:
    """What of the stored form differs from the integers, for a person; empty where nothing does."""
    wider: dict[tuple[int, int], int] = {}
    for weight in weights.values():
        held = 4 if weight.scheme.bits <= 4 else 8
        if weight.scheme.bits != held:
            wider[weight.scheme.bits, held] = wider.get((weight.scheme.bits, held), 0) + 1
    return "; ".join(f"{count} matrices of {bits} bits are stored in {held}" for (bits, held), count in sorted(wider.items()))
