"""A transposed convolution as an ordinary one, which integer kernels compute.

With stride s, every place of the result belongs to one of s phases in each dimension, and each phase is a convolution of the input with
every s-th weight (Shi et al. 2016, arXiv:1609.07009). Their channels side by side are one convolution with as many channels for each phase;
``pixel_shuffle``, or what moves values in the same way, puts the phases in their places, and what the padding of the transposed convolution
leaves out is cut off.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engine.lowering.graph.kinds import BATCH_NORMS, CONVOLUTIONS, IN_KERNELS, TRANSPOSED, kind, module_of, source

# Operations on single values, or single channels, that may run before the phases are in their places.
_COMMUTES = ("bn", *IN_KERNELS, "identity")
_MARK = "subpixel"
_GEOMETRY = "transposed"


@dataclass(frozen=True)
class Transposed:
    """Geometry of the transposed convolution that a convolution computes, a number for each dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def spans(self) -> tuple[int, ...]:
        """How many weights a phase is taken from: with a stride, those that a dilation leaves out are zeros."""
        pairs = zip(self.kernel, self.stride, self.dilation, strict=True)
        return tuple(d * (k - 1) + 1 if s > 1 else k for k, s, d in pairs)

    @property
    def taps(self) -> tuple[int, ...]:
        """Weights of one phase."""
        return tuple(-(-span // s) for span, s in zip(self.spans, self.stride, strict=True))

    @property
    def kept(self) -> tuple[slice, ...]:
        """Where the layer's own weights are among ``spans``."""
        return tuple(slice(0, span, d if s > 1 else 1) for span, s, d in zip(self.spans, self.stride, self.dilation, strict=True))


def transposed_to_convolutions(gm: fx.GraphModule) -> tuple[str, ...]:
    """Rewrite, in place, each transposed convolution as a convolution and what puts its result in place, behind the normalization and
    activation that follow. Returns their paths."""
    calls = [str(node.target) for node in gm.graph.nodes if node.op == "call_module"]
    done = []
    for node in list(gm.graph.nodes):
        layer: Any = module_of(node)
        if not _suitable(layer) or calls.count(str(node.target)) > 1 or len(node.args) != 1 or node.kwargs:
            continue
        phases = math.prod(layer.stride)
        end = _last(node, calls)
        gm.set_submodule(str(node.target), _convolution(layer))
        place = node
        while place is not end:
            (place,) = place.users
            norm = module_of(place)
            if isinstance(norm, BATCH_NORMS):
                gm.set_submodule(str(place.target), _spread(norm, phases))
        _put_in_place(gm.graph, end, node, layer)
        done.append(str(node.target))
    gm.recompile()
    return tuple(done)


def with_transposed(gm: fx.GraphModule) -> fx.GraphModule:
    """Rewrite, in place, what ``transposed_to_convolutions`` made of ``gm`` as the transposed convolutions that the model has, with
    the weights that its convolutions have by now. Returns ``gm``."""
    for node in reversed(list(gm.graph.nodes)):
        read = source(node)
        if _MARK in node.meta and read is not None:
            node.replace_all_uses_with(read)
            gm.graph.erase_node(node)
    for node in gm.graph.nodes:
        layer = module_of(node)
        if geometry_of(layer) is None:
            continue
        gm.set_submodule(str(node.target), _transposed(layer))
    gm.recompile()
    return gm


def geometry_of(layer: nn.Module | None) -> Transposed | None:
    """Of a convolution that computes a transposed one, that one's geometry."""
    found = getattr(layer, _GEOMETRY, None)
    return found if isinstance(found, Transposed) else None


def type_name(layer: nn.Module) -> str:
    """The class that the model has where ``layer`` is in the graph."""
    geometry = geometry_of(layer)
    return type(layer).__name__ if geometry is None else TRANSPOSED[len(geometry.kernel) - 1].__name__


def _suitable(layer: Any) -> bool:
    if type(layer) not in TRANSPOSED or layer._forward_hooks or layer._forward_pre_hooks or layer.weight.dtype != torch.float32:
        return False
    return bool(layer.padding_mode == "zeros")


def _last(node: fx.Node, calls: list[str]) -> fx.Node:
    """The last operation behind ``node`` that may run before its result is put in place."""
    end, active = node, False
    while len(end.users) == 1:
        (user,) = end.users
        module = module_of(user)
        alone = len(user.all_input_nodes) == 1 and not (module is not None and (module._forward_hooks or module._forward_pre_hooks))
        if kind(user) not in _COMMUTES or not alone or (user.op == "call_method" and kind(user) == "identity"):
            break
        # A normalization behind an activation is not folded: it stays the module that the model has, with as many channels.
        if kind(user) == "bn" and (active or calls.count(str(user.target)) > 1 or getattr(module, "running_mean", None) is None):
            break
        active = active or kind(user) not in ("bn", "identity")
        end = user
    return end


def _pads(geometry: Transposed) -> list[tuple[int, int, int]]:
    """Of each dimension: padding of the convolution, and what is cut off its phases at the start and at the end."""
    found = []
    for axis, k in enumerate(geometry.kernel):
        s, p = geometry.stride[axis], geometry.padding[axis]
        span, more = geometry.dilation[axis] * (k - 1) + 1, geometry.output_padding[axis]
        taps = -(-span // s)
        pad = max(0, taps - 1 - p // s, -(-(span + more - p - s) // s))
        found.append((pad, p - s * (taps - 1 - pad), s * pad + s + p - span - more))
    return found


def _convolution(layer: Any) -> nn.Module:
    rank = layer.weight.dim() - 2
    geometry = Transposed(*(_each(value, rank) for value in (
        layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.dilation,
    )))  # fmt: skip
    weight, strides, taps = layer.weight.detach(), geometry.stride, geometry.taps
    outputs = layer.out_channels // layer.groups
    # (in, out / groups, …) to (out, in / groups, …).
    weight = weight.reshape(layer.groups, -1, outputs, *geometry.kernel).transpose(1, 2).reshape(layer.out_channels, -1, *geometry.kernel)
    whole = weight.new_zeros((*weight.shape[:2], *(n * s for n, s in zip(taps, strides, strict=True))))
    whole[(slice(None), slice(None), *geometry.kept)] = weight
    # (out, in, taps, strides, …) to (out, strides …, in, taps …).
    apart = whole.reshape(*weight.shape[:2], *(size for pair in zip(taps, strides, strict=True) for size in pair))
    order = (0, *range(3, 3 + 2 * rank, 2), 1, *range(2, 2 + 2 * rank, 2))
    phases = apart.permute(order).flatten(0, rank).flip(tuple(range(2, 2 + rank)))
    build: Any = CONVOLUTIONS[rank - 1]
    made = build(
        layer.in_channels, len(phases), taps, padding=tuple(pad for pad, _, _ in _pads(geometry)),
        dilation=tuple(1 if s > 1 else d for s, d in zip(strides, geometry.dilation, strict=True)), groups=layer.groups,
        bias=layer.bias is not None, device="meta",
    )  # fmt: skip
    made.weight = nn.Parameter(phases.contiguous(), requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach().repeat_interleave(math.prod(strides)), requires_grad=layer.bias.requires_grad)
    made.transposed = geometry
    return made.train(layer.training)  # type: ignore[no-any-return]


def _transposed(layer: Any) -> nn.Module:
    geometry: Transposed = layer.transposed
    strides, taps, rank, count = geometry.stride, geometry.taps, len(geometry.kernel), math.prod(geometry.stride)
    phases = layer.weight.detach().flip(tuple(range(2, 2 + rank)))
    channels = len(phases) // count
    apart = phases.reshape(channels, *strides, -1, *taps)
    # (out, strides …, in, taps …) to (out, in, taps, strides, …).
    places = (place for axis in range(rank) for place in (2 + rank + axis, 1 + axis))
    whole = apart.permute(0, 1 + rank, *places).reshape(channels, -1, *(n * s for n, s in zip(taps, strides, strict=True)))
    weight = whole[(slice(None), slice(None), *geometry.kept)]
    weight = weight.reshape(layer.groups, channels // layer.groups, -1, *geometry.kernel).transpose(1, 2).flatten(0, 1)
    build: Any = TRANSPOSED[rank - 1]
    made = build(
        layer.in_channels, channels, geometry.kernel, geometry.stride, geometry.padding, geometry.output_padding, layer.groups,
        layer.bias is not None, geometry.dilation, device="meta",
    )  # fmt: skip
    made.weight = nn.Parameter(weight.contiguous(), requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach()[::count].clone(), requires_grad=layer.bias.requires_grad)
    return made.train(layer.training)  # type: ignore[no-any-return]


def _spread(norm: Any, phases: int) -> nn.Module:
    """The normalization of channels as that of their phases."""

    def each(value: Tensor) -> Tensor:
        return value.detach().repeat_interleave(phases)

    made: Any = type(norm)(norm.num_features * phases, norm.eps, norm.momentum, norm.affine)
    made.running_mean, made.running_var = each(norm.running_mean), each(norm.running_var)
    if norm.affine:
        for name in ("weight", "bias"):
            own = getattr(norm, name)
            setattr(made, name, nn.Parameter(each(own), requires_grad=own.requires_grad))
    return made.train(norm.training)  # type: ignore[no-any-return]


def _put_in_place(graph: fx.Graph, end: fx.Node, node: fx.Node, layer: Any) -> None:
    """Phases to places and the margins off, between ``end`` and what reads it."""
    geometry = geometry_of(module_of(node))
    assert geometry is not None
    cuts = [slice(start, -stop or None) for _, start, stop in _pads(geometry)]
    full, users, strides, rank = dict(end.meta), list(end.users), geometry.stride, len(geometry.kernel)
    sizes = _inner(full.get("shape"), geometry)
    batch, channels = (full["shape"][0], layer.out_channels) if sizes is not None else (None, layer.out_channels)

    def moved(read: fx.Node, shape: tuple[int | None, ...], function: Any, *args: Any) -> fx.Node:
        with graph.inserting_after(read):
            made = graph.call_function(function, (read, *args))
        made.meta = {**full, _MARK: str(node.target)} | ({} if sizes is None else {"shape": shape})
        return made

    inner = sizes or (None,) * rank
    outer = tuple(None if size is None else size * s for size, s in zip(inner, strides, strict=True))
    last = end
    if rank == 2 and strides[0] == strides[1]:
        last = end if strides[0] == 1 else moved(last, (batch, channels, *outer), F.pixel_shuffle, strides[0])
    elif math.prod(strides) > 1:
        # (N, channels · phases, …) to (N, channels, phases …, …), each phase beside its place, and both as one size.
        order = (0, 1, *(place for axis in range(rank) for place in (2 + rank + axis, 2 + axis)))
        last = moved(last, (batch, channels, *strides, *inner), torch.unflatten, 1, (channels, *strides))
        pairs = tuple(size for pair in zip(inner, strides, strict=True) for size in pair)
        last = moved(last, (batch, channels, *pairs), torch.permute, order)
        for axis in range(rank):
            last = moved(last, (batch, channels, *outer[: axis + 1], *pairs[2 * axis + 2 :]), torch.flatten, 2 + axis, 3 + axis)
    if any(cut != slice(0, None) for cut in cuts):
        last = moved(last, tuple(full.get("shape") or ()), operator.getitem, (slice(None), slice(None), *cuts))
    for user in users:
        user.replace_input_with(end, last)
    if sizes is None:
        return
    # The convolution, and what runs before its phases are in their places.
    one, shape = node, (batch, channels * math.prod(strides), *sizes)
    while True:
        one.meta = {**one.meta, "shape": shape}
        if one is end:
            break
        (one,) = one.users


def _inner(shape: tuple[int | None, ...] | None, geometry: Transposed) -> tuple[int | None, ...] | None:
    """Sizes of one phase, of results of ``shape``."""
    if shape is None:
        return None
    sides = zip(shape[2:], _pads(geometry), geometry.stride, strict=True)
    return tuple(None if size is None else (size + start + stop) // s for size, (_, start, stop), s in sides)


def _each(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(map(int, value))
