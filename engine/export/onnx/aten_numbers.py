"""The ONNX form of ``aten``'s operations on integers and places, of further functions of numbers, and of Fourier transforms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.export.onnx.aten import At
from engine.export.onnx.aten_types import cast
from engine.export.onnx.graph import Batch, Complex, Dim, Value

Build = Callable[[At], Any]


def _plain(op: str) -> Build:
    return lambda at: at.node(op, at.args[0])


def copied(at: At) -> str:
    """In another type."""
    return at.read(cast(at.graph, at.args[0], at.kwargs.get("dtype") or at.args[0].kind, at.hint))


def filled(value: float | None) -> Build:
    """A tensor of one number. Memory that torch has not filled holds zeros: whatever is read of it was written before."""

    def build(at: At) -> str:
        number = at.args[1] if value is None else value
        array = torch.tensor(number, dtype=at.result if at.result != torch.bool else torch.int64)
        made = at.node("Expand", at.graph.constant(array), at.graph.shape(at.shape, f"{at.hint}_shape"))
        return at.node("Cast", made, to=at.graph.onnx.TensorProto.BOOL) if at.result == torch.bool else made

    return build


def _remainder(at: At) -> str:
    """With the sign of the divisor."""
    left, right = at.args[:2]
    if at.kind.is_floating_point:
        return at.node("Sub", left, at.node("Mul", at.node("Floor", at.node("Div", left, right)), right))
    return at.node("Mod", left, right)


def div(at: At) -> str:
    left, right = at.args[:2]
    mode = at.kwargs.get("rounding_mode")
    if mode is None or at.kind.is_floating_point:
        made = at.node("Div", left, right)
        if mode is None:
            return made
        return at.node("Floor", made) if mode == "floor" else at.node("Mul", at.node("Sign", made), at.node("Floor", at.node("Abs", made)))
    if mode == "trunc":
        return at.node("Div", left, right)
    # ONNX cuts the fraction of integers off: what is taken away first makes the rest divide.
    return at.node("Div", at.node("Sub", left, at.node("Mod", left, right)), right)


def _extreme_place(op: str) -> Build:
    def build(at: At) -> str:
        axis, keep = at.arg(1, "dim"), int(bool(at.arg(2, "keepdim", False)))
        x = at.args[0]
        if axis is None:
            flat = at.graph.reshape(at.read(x), (math.prod(x.shape),), at.hint)
            return at.node(op, flat, axis=0, keepdims=0)
        return at.node(op, x, axis=axis % len(x.shape), keepdims=keep)

    return build


def _top(at: At) -> tuple[str, str]:
    count, axis, largest = at.arg(1, "k"), at.arg(2, "dim", -1), at.arg(3, "largest", True)
    return _picked(at, count, axis % len(at.args[0].shape), bool(largest))


def _sort(at: At) -> tuple[str, str]:
    stable = len(at.args) > 1 and isinstance(at.args[1], bool) and len(at.args) > 2
    axis, descending = (
        (at.arg(2, "dim", -1), at.arg(3, "descending", False)) if stable else (at.arg(1, "dim", -1), at.arg(2, "descending", False))
    )
    axis %= len(at.args[0].shape)
    return _picked(at, at.args[0].shape[axis], axis, bool(descending))


def _picked(at: At, count: Any, axis: int, largest: bool) -> tuple[str, str]:
    if isinstance(count, Batch):
        raise ValueError("an order of the images")
    names = [at.graph.name(at.hint), at.graph.name(at.hint)]
    made = at.graph.onnx.helper.make_node(
        "TopK", [at.read(at.args[0]), at.graph.constant([count])], names, name=f"{names[0]}/TopK", axis=axis, largest=int(largest), sorted=1
    )
    at.graph.nodes.append(made)
    return names[0], names[1]


def _any(at: At) -> str:
    x = at.args[0]
    axes = at.arg(1, "dim")
    axes = list(range(len(x.shape))) if axes is None else [axes] if isinstance(axes, int) else list(axes)
    numbers = cast(at.graph, cast(at.graph, x, torch.bool, at.hint), torch.int32, at.hint)
    keep = int(bool(at.arg(2, "keepdim", False)))
    made = at.node("ReduceMax", numbers, at.graph.constant([axis % len(x.shape) for axis in axes]), keepdims=keep)
    return at.node("Cast", made, to=at.graph.onnx.TensorProto.BOOL)


def _gather(at: At) -> str:
    return at.node("GatherElements", at.args[0], at.args[2], axis=at.args[1] % len(at.shape))


def _power_of(base: float) -> Build:
    return lambda at: at.node("Exp", at.node("Mul", at.args[0], math.log(base)))


def _log_to(base: float) -> Build:
    return lambda at: at.node("Mul", at.node("Log", at.args[0]), 1 / math.log(base))


def _angle(at: At) -> str:
    """The angle of (x, y) in the right quarter, by that of a ratio of at most one."""
    y, x = at.args[:2]
    high, wide = at.node("Abs", y), at.node("Abs", x)
    steep = at.node("Greater", high, wide)
    longer = at.node("Max", at.node("Max", high, wide), 1e-38)
    angle = at.node("Atan", at.node("Div", at.node("Min", high, wide), longer))
    angle = at.node("Where", steep, at.node("Sub", math.pi / 2, angle), angle)
    angle = at.node("Where", at.node("Less", x, 0.0), at.node("Sub", math.pi, angle), angle)
    return at.node("Where", at.node("Less", y, 0.0), at.node("Neg", angle), angle)


def _hypot(at: At) -> str:
    return at.node("Sqrt", at.node("Add", at.node("Mul", at.args[0], at.args[0]), at.node("Mul", at.args[1], at.args[1])))


def _scaled_product(at: At) -> str:
    bias, a, b = at.args[:3]
    alpha, beta = float(at.kwargs.get("alpha", 1)), float(at.kwargs.get("beta", 1))
    if len(a.shape) == 2:
        return at.node("Gemm", a, b, bias, alpha=alpha, beta=beta)
    made = at.node("MatMul", a, b)
    made = made if alpha == 1 else at.node("Mul", made, alpha)
    return at.node("Add", made, bias if beta == 1 else at.node("Mul", bias, beta))


def _var_mean(at: At) -> tuple[str, str]:
    from engine.export.onnx.aten_more import MORE

    axes = at.arg(1, "dim")
    axes = list(range(len(at.args[0].shape))) if axes is None else list(axes)
    return MORE["var"](at), at.node("ReduceMean", at.args[0], at.graph.constant(axes), keepdims=int(bool(at.kwargs.get("keepdim", False))))


def _slope_of_mean(at: At) -> str:
    """A leak that training draws at random is its mean in use."""
    low, high = float(at.arg(2, "lower", 1 / 8)), float(at.arg(3, "upper", 1 / 3))
    if at.arg(4, "training", False):
        raise ValueError("a random slope")
    return at.node("LeakyRelu", at.args[0], alpha=(low + high) / 2)


def by_matrices(count: int, corners: bool = True) -> Build:
    """Resizing of the last ``count`` dimensions as a product with a matrix for each: they are what torch makes of unit vectors.
    ``corners`` is whether the call says if corners are aligned."""

    def build(at: At) -> str:
        x, rank = at.args[0], len(at.shape)
        said = [at.args[2]] if corners else []
        scales = ([*at.args[2 + len(said) :], *[None] * count])[:count]
        for i in range(count):
            axis = rank - count + i
            matrix = _of_units(at.target, _known(x.shape[axis]), _known(at.shape[axis]), (i, count), said, scales[i])
            shape = (*x.shape[:axis], at.shape[axis], *x.shape[axis + 1 :])
            x = Value(_along(at, x, axis, rank, matrix), shape)
        return at.read(x)

    return build


def by_places(count: int) -> Build:
    """Resizing of the last ``count`` dimensions that repeats or drops values: each is picked by its place."""

    def build(at: At) -> str:
        x, rank = at.args[0], len(at.shape)
        name, scales = at.read(x), ([*at.args[2:], *[None] * count])[:count]
        for i in range(count):
            axis = rank - count + i
            size, out = _known(x.shape[axis]), _known(at.shape[axis])
            if size != out:
                places = _of_units(at.target, size, out, (i, count), [], scales[i]).argmax(0)
                name = at.node("Gather", name, at.graph.constant(places), axis=axis)
        return name

    return build


def _of_units(resize: Any, size: int, out: int, place: tuple[int, int], said: list[Any], scale: Any) -> Tensor:
    """What ``resize`` makes of unit vectors along one of its dimensions: (size, out)."""
    index, count = place
    # The other dimensions keep their size, which is more than one: torch reads images of one column in another order.
    shape, outputs = [_OTHER] * count, [_OTHER] * count
    shape[index], outputs[index] = size, out
    scales = [scale if i == index else None for i in range(count)]
    given = () if "adaptive" in str(resize) else (*said, *scales)
    units = torch.eye(size).reshape(1, size, *(size if i == index else 1 for i in range(count))).expand(1, size, *shape).contiguous()
    made: Tensor = resize(units, outputs, *given).movedim(2 + index, 2)
    return made.reshape(size, out, -1)[:, :, 0].contiguous()


def _known(size: Dim) -> int:
    if isinstance(size, Batch):
        raise ValueError("a size that follows the number of images")
    return size


def strided(at: At) -> str:
    """A view by strides: of a contiguous tensor whose items the view keeps apart, what it reads by places within an item."""
    x, strides, offset = at.args[0], list(at.arg(2, "stride")), at.arg(3, "storage_offset") or 0
    if x.shape == at.shape:
        return at.read(x)  # torch's way to name another order in memory.
    sizes = at.shape
    inner = x.shape[1:] if x.shape and isinstance(x.shape[0], Batch) else x.shape
    if not all(isinstance(size, int) for size in inner):
        raise ValueError("a view by strides")
    count = math.prod(inner)
    start = 1 if len(inner) < len(x.shape) else 0
    if start and (sizes[0] != x.shape[0] or strides[0] != count):
        raise ValueError("a view by strides of all images together")
    if offset + sum((size - 1) * stride for size, stride in zip(sizes[start:], strides[start:], strict=True)) >= count:
        raise ValueError("a view by strides beyond one image")
    place = torch.full([1] * (len(sizes) - start), offset, dtype=torch.int64)
    for axis, (size, stride) in enumerate(zip(sizes[start:], strides[start:], strict=True)):
        place = place + (torch.arange(size) * stride).reshape([-1 if i == axis else 1 for i in range(len(sizes) - start)])
    flat = at.graph.reshape(at.read(x), (*x.shape[:start], count), at.hint)
    made = at.node("Gather", flat, at.graph.constant(place.flatten()), axis=start)
    return at.graph.reshape(made, at.shape, at.hint)


def _windows(at: At) -> str:
    """``Tensor.unfold``: windows along one dimension, which become the last."""
    x, size, step = at.args[0], at.args[2], at.args[3]
    axis = at.args[1] % len(x.shape)
    length = x.shape[axis]
    if isinstance(length, Batch):
        raise ValueError("windows over the images")
    places = (torch.arange(0, length - size + 1, step)[:, None] + torch.arange(size)).flatten()
    made = at.node("Gather", x, at.graph.constant(places), axis=axis)
    count = len(places) // size
    made = at.graph.reshape(made, (*x.shape[:axis], count, size, *x.shape[axis + 1 :]), at.hint)
    order = [i for i in range(len(x.shape) + 1) if i != axis + 1]
    return at.node("Transpose", made, perm=[*order, axis + 1])


def _diagonal(at: At) -> str:
    """The main diagonal of two dimensions, which becomes the last."""
    x, offset = at.args[0], at.arg(1, "offset", 0)
    rank = len(x.shape)
    a, b = at.arg(2, "dim1", 0) % rank, at.arg(3, "dim2", 1) % rank
    high, wide = x.shape[a], x.shape[b]
    if isinstance(high, Batch) or isinstance(wide, Batch):
        raise ValueError("a diagonal over the images")
    order = [i for i in range(rank) if i not in (a, b)]
    rest = tuple(x.shape[i] for i in order)
    made = at.graph.reshape(at.node("Transpose", x, perm=[*order, a, b]), (*rest, high * wide), at.hint)
    count = at.shape[-1]
    first = offset if offset >= 0 else -offset * wide
    return at.node("Gather", made, at.graph.constant(np.arange(count, dtype=np.int64) * (wide + 1) + first), axis=len(rest))


# What moves numbers without changing them does so with both parts.
_OTHER = 4
MOVES = frozenset((
    "view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "flatten", "permute", "transpose", "t", "expand", "slice", "select",
    "clone", "contiguous", "alias", "detach", "index_select", "flip", "roll",
))  # fmt: skip


def _fourier(at: At) -> Complex | str:
    """Discrete Fourier transforms along each of ``dim`` as products with matrices of cosines and sines."""
    x, name = at.args[0], at.name
    axes, norm, last = list(at.args[1]), at.args[2], at.args[3]
    real, imag = (x.real, x.imag) if isinstance(x, Complex) else (x, None)
    shape = list(real.shape)
    rank = len(shape)
    if any(isinstance(shape[axis], Batch) for axis in axes):
        raise ValueError("a transform over the images")
    full = [last if name == "_fft_c2r" and axis == axes[-1] else shape[axis] for axis in axes]
    scale = {0: 1.0, 1: 1 / math.sqrt(math.prod(full)), 2: 1 / math.prod(full)}[norm]
    forward = name == "_fft_r2c" or (name == "_fft_c2c" and bool(last))
    for axis, size in zip(axes if name != "_fft_r2c" else axes[::-1], full if name != "_fft_r2c" else full[::-1], strict=True):
        halved = name == "_fft_r2c" and bool(last) and axis == axes[-1]
        closing = name == "_fft_c2r" and axis == axes[-1]
        outputs = size // 2 + 1 if halved else size
        cosines, sines = _waves(size, shape[axis], outputs, forward)
        if closing:
            # Of conjugate pairs one half is given: it counts twice, but for what is its own partner.
            twice = torch.full((shape[axis], 1), 2.0, dtype=torch.float64)
            twice[0] = 1.0
            if size % 2 == 0:
                twice[-1] = 1.0
            cosines, sines = cosines * twice, sines * twice
        cosines, sines = cosines * scale, sines * scale
        scale = 1.0
        shape[axis] = outputs
        rest = tuple(shape)
        parts = [_along(at, part, axis, rank, cosines) for part in (real, imag) if part is not None]
        crossed = [_along(at, part, axis, rank, sines) for part in (real, imag) if part is not None]
        first = parts[0] if imag is None else at.node("Sub", parts[0], crossed[1])
        if closing:
            return first
        second = crossed[0] if imag is None else at.node("Add", crossed[0], parts[1])
        real, imag = Value(first, rest), Value(second, rest)
    assert imag is not None
    return Complex(real, imag)


def _waves(size: int, inputs: int, outputs: int, forward: bool) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles between places (inputs, outputs), in float64."""
    angle = torch.outer(torch.arange(inputs), torch.arange(outputs)).remainder(size).double() * (2 * math.pi / size)
    return torch.cos(angle), torch.sin(angle) * (-1 if forward else 1)


def _along(at: At, x: Value, axis: int, rank: int, matrix: Tensor) -> str:
    axis %= rank
    name, order = at.read(x), list(range(rank))
    if axis != rank - 1:
        order[axis], order[-1] = order[-1], order[axis]
        name = at.node("Transpose", name, perm=order)
    name = at.node("MatMul", name, at.graph.constant(matrix.float()))
    return name if axis == rank - 1 else at.node("Transpose", name, perm=order)


def of_complex(at: At) -> Any:
    """A call on complex numbers. Raises ValueError for one that has no form."""
    x, name = _in_parts(at.args[0]), at.name
    if name == "_to_copy" and not isinstance(x, Complex):
        return Complex(x, Value(at.node("Mul", x, 0.0), at.shape))
    if name == "view_as_complex":
        parts = [at.node("Gather", x, at.graph.constant(np.array(i, np.int64)), axis=len(x.shape) - 1) for i in (0, 1)]
        return Complex(*(Value(part, at.shape) for part in parts))
    if name in ("_fft_r2c", "_fft_c2c", "_fft_c2r"):
        return _fourier(at)
    if name == "abs":
        return _hypot(at.on(x.real, x.imag))
    if name == "angle":
        return _angle(at.on(x.imag, x.real))
    if name in ("real", "imag"):
        return at.read(getattr(x, name))
    if name in ("view_as_real", "_conj", "conj_physical", "neg", "resolve_conj"):
        if name == "view_as_real":
            thin = (*x.shape, 1)
            ends = [at.graph.reshape(at.read(part), thin, at.hint) for part in (x.real, x.imag)]
            return at.graph.node("Concat", ends, at.hint, axis=len(x.shape))
        if name == "resolve_conj":
            return x
        imag = Value(at.node("Neg", x.imag), x.shape)
        return Complex(x.real if name != "neg" else Value(at.node("Neg", x.real), x.shape), imag)
    if name in ("mul", "add", "sub", "div"):
        return _arithmetic(at, name)
    raise ValueError(f"{name} of complex numbers")


def _in_parts(given: Any) -> Any:
    """A constant of complex numbers as its two parts."""
    if not isinstance(given, Value) or given.constant is None or not given.constant.is_complex():
        return given
    parts = (given.constant.real.contiguous(), given.constant.imag.contiguous())
    return Complex(*(Value(f"{given.name}_{i}", given.shape, part) for i, part in enumerate(parts)))


def _arithmetic(at: At, name: str) -> Complex:
    left, right = (_in_parts(given) for given in at.args[:2])
    a, b = (left.real, left.imag) if isinstance(left, Complex) else (left, None)
    c, d = (right.real, right.imag) if isinstance(right, Complex) else (right, None)

    def value(made: str) -> Value:
        return Value(made, at.shape)

    if name == "mul":
        first = at.node("Mul", a, c) if b is None or d is None else at.node("Sub", at.node("Mul", a, c), at.node("Mul", b, d))
        crossed = [at.node("Mul", one, other) for one, other in ((a, d), (b, c)) if one is not None and other is not None]
        second = crossed[0] if len(crossed) == 1 else at.node("Add", *crossed)
        return Complex(value(first), value(second))
    if name == "div":
        if d is not None or b is None:
            raise ValueError("a division by complex numbers")
        return Complex(value(at.node("Div", a, c)), value(at.node("Div", b, c)))
    if b is None or d is None or at.kwargs.get("alpha", 1) != 1:
        raise ValueError(f"{name} of complex and real numbers")
    op = "Add" if name == "add" else "Sub"
    return Complex(value(at.node(op, a, c)), value(at.node(op, b, d)))


COMPLEX = frozenset(("_fft_r2c", "_fft_c2c", "_fft_c2r", "view_as_complex"))
NUMBERS: dict[str, Build] = {
    "_to_copy": copied, "remainder": _remainder, "div": div, "argmax": _extreme_place("ArgMax"), "argmin": _extreme_place("ArgMin"),
    "topk": _top, "sort": _sort, "any": _any, "gather": _gather, "exp2": _power_of(2), "log2": _log_to(2), "log10": _log_to(10),
    "atan2": _angle, "hypot": _hypot, "addmm": _scaled_product, "baddbmm": _scaled_product, "var_mean": _var_mean,
    "rrelu_with_noise": _slope_of_mean, "_upsample_bilinear2d_aa": by_matrices(2), "_upsample_bicubic2d_aa": by_matrices(2),
    "upsample_trilinear3d": by_matrices(3), "upsample_linear1d": by_matrices(1), "_adaptive_avg_pool3d": by_matrices(3, False),
    "upsample_nearest1d": by_places(1), "upsample_nearest3d": by_places(3), "as_strided": strided,
    "unfold": _windows, "diagonal": _diagonal, "zeros": filled(0), "ones": filled(1), "full": filled(None), "zeros_like": filled(0),
    "ones_like": filled(1), "full_like": filled(None), "empty": filled(0), "empty_like": filled(0), "new_empty": filled(0),
    "empty_permuted": filled(0), "empty_strided": filled(0), "new_zeros": filled(0),
    "fill": filled(None),
    **{
        name: _plain(op)
        for name, op in (
            ("atan", "Atan"), ("tan", "Tan"), ("asin", "Asin"), ("acos", "Acos"), ("sinh", "Sinh"), ("cosh", "Cosh"), ("asinh", "Asinh"),
            ("acosh", "Acosh"), ("atanh", "Atanh"), ("isnan", "IsNaN"), ("isinf", "IsInf"),
        )
    },
}  # fmt: skip
