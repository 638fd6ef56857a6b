"""The layers of a decoder as ONNX nodes: norms, activations, rotary positions, attention over a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.export.onnx.architecture import Architecture, Rotary
from engine.export.onnx.graph import Graph

LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Places:
    """Names of what every block reads: ``now`` the positions of the given tokens, int64 (T,), ``all`` those of the cached ones too."""

    now: str
    all: str


def places(graph: Graph, ids: str, past: str) -> Places:
    """``ids`` (N, T) follow those that ``past`` (N, heads, P, width) holds."""
    zero, one = graph.constant(0), graph.constant(1)
    tokens = graph.node("Squeeze", [graph.node("Shape", [ids], "tokens", start=1, end=2)], "tokens")
    before = graph.node("Squeeze", [graph.node("Shape", [past], "past", start=2, end=3)], "past")
    end = graph.node("Add", [before, tokens], "end")
    return Places(graph.node("Range", [before, end, one], "positions"), graph.node("Range", [zero, end, one], "all_positions"))


def mask(graph: Graph, at: Places, window: int | None) -> str:
    """What is added to scores, (T, P + T): zero for a token and those before it, of a window the last ``window`` alone."""
    rows = graph.node("Unsqueeze", [at.now, graph.constant([1])], "rows")
    hidden = graph.node("Greater", [at.all, rows], "later")
    if window is not None:
        first = graph.node("Sub", [rows, graph.constant(window)], "first")
        hidden = graph.node("Or", [hidden, graph.node("LessOrEqual", [at.all, first], "earlier")], "hidden")
    return graph.node("Where", [hidden, graph.constant(LOWEST), graph.constant(0.0)], "mask")


def norm(graph: Graph, x: str, module: Any, path: str) -> str:
    """LayerNorm, or division by the root of the mean square where the module has no ``eps`` of that."""
    if isinstance(module, torch.nn.LayerNorm):
        size = module.normalized_shape
        weight = module.weight if module.weight is not None else torch.ones(size)
        names = [x, graph.constant(weight, f"{path}.weight")]
        if module.bias is not None:
            names.append(graph.constant(module.bias, f"{path}.bias"))
        return graph.node("LayerNormalization", names, path, axis=-1, epsilon=float(module.eps))
    square = graph.node("Pow", [x, graph.constant(2.0)], path)
    mean = graph.node("ReduceMean", [square, graph.constant([-1])], path, keepdims=1)
    root = graph.node("Sqrt", [graph.node("Add", [mean, graph.constant(float(module.variance_epsilon))], path)], path)
    return graph.node("Mul", [graph.node("Div", [x, root], path), graph.constant(module.weight, f"{path}.weight")], path)


def activation(graph: Graph, x: str, kind: str, path: str) -> str:
    if kind == "relu":
        return graph.node("Relu", [x], path)
    if kind == "silu":
        return graph.node("Mul", [x, graph.node("Sigmoid", [x], path)], path)
    return graph.node("Gelu", [x], path, approximate="tanh" if kind == "tanh" else "none")


def angles(graph: Graph, at: Places, rotary: Rotary) -> tuple[str, str]:
    """Cosine and sine, (T, 2n) each."""
    numbers = graph.node("Cast", [at.now], "rotary", to=graph.onnx.TensorProto.FLOAT)
    column = graph.node("Unsqueeze", [numbers, graph.constant([1])], "rotary")
    half = graph.node("Mul", [column, graph.constant(rotary.frequencies[None], "frequencies")], "rotary")
    whole = graph.node("Concat", [half, half], "rotary", axis=-1)
    parts = [graph.node(op, [whole], f"rotary_{op.lower()}") for op in ("Cos", "Sin")]
    if rotary.scale != 1.0:
        parts = [graph.node("Mul", [part, graph.constant(rotary.scale)], "rotary") for part in parts]
    return parts[0], parts[1]


def turned(graph: Graph, x: str, turn: tuple[str, str], rotary: Rotary, width: int, path: str) -> str:
    """``x`` (N, heads, T, width) by the angles of its positions; numbers past the angles' stay."""
    half = len(rotary.frequencies)
    rest = width - 2 * half
    first, second, *kept = split(graph, x, [half, half, *([rest] if rest else [])], path)
    both = graph.node("Concat", [first, second], path, axis=-1) if rest else x
    across = graph.node("Concat", [graph.node("Neg", [second], path), first], path, axis=-1)
    made = graph.node("Add", [graph.node("Mul", [both, turn[0]], path), graph.node("Mul", [across, turn[1]], path)], path)
    return graph.node("Concat", [made, *kept], path, axis=-1) if rest else made


def split(graph: Graph, x: str, sizes: Sequence[int], path: str) -> list[str]:
    """Consecutive parts of the last dimension."""
    outputs = [graph.name(path) for _ in sizes]
    helper = graph.onnx.helper
    graph.nodes.append(helper.make_node("Split", [x, graph.constant(list(sizes))], outputs, name=f"{outputs[0]}/Split", axis=-1))
    return outputs


def heads(graph: Graph, x: str, count: int, width: int, path: str) -> str:
    """(N, T, count * width) to (N, T, count, width)."""
    return graph.node("Reshape", [x, graph.constant([0, 0, count, width])], path)


def turn_heads(graph: Graph, x: str, path: str) -> str:
    """(N, T, heads, width) to (N, heads, T, width), and back."""
    return graph.node("Transpose", [x], path, perm=[0, 2, 1, 3])


def attend(graph: Graph, q: str, k: str, v: str, hidden: str, form: Architecture, scale: float, path: str) -> str:
    """Softmax attention: queries (N, heads, T, width), keys and values (N, shared, S, width), to (N, T, heads * width).

    Heads that share keys stand one below the other, so that keys are not copied."""
    q = graph.node("Mul", [q, graph.constant(scale)], path)
    if form.repeats > 1:
        q = graph.node("Reshape", [q, graph.constant([0, form.shared, -1, form.width])], path)
    scores = graph.node("MatMul", [q, graph.node("Transpose", [k], path, perm=[0, 1, 3, 2])], path)
    if form.repeats > 1:
        length = graph.node("Shape", [scores], path, start=3, end=4)
        scores = graph.node("Reshape", [scores, _joined(graph, [0, form.heads, -1], length, path)], path)
    weights = graph.node("Softmax", [graph.node("Add", [scores, hidden], path)], path, axis=-1)
    if form.repeats > 1:
        weights = graph.node("Reshape", [weights, _joined(graph, [0, form.shared, -1], length, path)], path)
    made = graph.node("MatMul", [weights, v], path)
    if form.repeats > 1:
        made = graph.node("Reshape", [made, graph.constant([0, form.heads, -1, form.width])], path)
    return graph.node("Reshape", [turn_heads(graph, made, path), graph.constant([0, 0, form.heads * form.width])], path)


def _joined(graph: Graph, first: Sequence[int], last: str, path: str) -> str:
    return graph.node("Concat", [graph.constant(list(first)), last], path, axis=0)
