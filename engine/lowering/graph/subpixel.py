"""A transposed convolution as an ordinary one, which integer kernels compute.

With stride s, every place of the result belongs to one of s × s phases, and each phase is a convolution of the input with every s-th
weight (Shi et al. 2016, arXiv:1609.07009). Their channels side by side are one convolution with s × s times as many; ``pixel_shuffle``
puts the phases in their places, and what the padding of the transposed convolution leaves out is cut off.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engine.lowering.graph.kinds import BATCH_NORMS, IN_KERNELS, kind, module_of, source

# Operations on single values, or single channels, that may run before the phases are in their places.
_COMMUTES = ("bn", *IN_KERNELS, "identity")
_MARK = "subpixel"
_GEOMETRY = "transposed"


@dataclass(frozen=True)
class Transposed:
    """Geometry of the ``ConvTranspose2d`` that a convolution computes."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int]
    dilation: tuple[int, int]


def transposed_to_convolutions(gm: fx.GraphModule) -> tuple[str, ...]:
    """Rewrite, in place, each 2-D transposed convolution of equal strides (and, with a stride, of no dilation) as a convolution and
    what puts its result in place, behind the normalization and activation that follow. Returns their paths."""
    calls = [str(node.target) for node in gm.graph.nodes if node.op == "call_module"]
    done = []
    for node in list(gm.graph.nodes):
        layer: Any = module_of(node)
        if not _suitable(layer) or calls.count(str(node.target)) > 1 or len(node.args) != 1 or node.kwargs:
            continue
        phases = layer.stride[0] ** 2
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
    for node in list(gm.graph.nodes):
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
    return nn.ConvTranspose2d.__name__ if geometry_of(layer) else type(layer).__name__


def _suitable(layer: Any) -> bool:
    if type(layer) is not nn.ConvTranspose2d or layer._forward_hooks or layer._forward_pre_hooks or layer.weight.dtype != torch.float32:
        return False
    (high, wide), strided = layer.stride, layer.stride != (1, 1)
    return high == wide and not (strided and layer.dilation != (1, 1)) and layer.padding_mode == "zeros"


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
    for axis in (0, 1):
        k, s, p = geometry.kernel[axis], geometry.stride[axis], geometry.padding[axis]
        span, more = geometry.dilation[axis] * (k - 1) + 1, geometry.output_padding[axis]
        taps = -(-span // s)
        pad = max(0, taps - 1 - p // s, -(-(span + more - p - s) // s))
        found.append((pad, p - s * (taps - 1 - pad), s * pad + s + p - span - more))
    return found


def _convolution(layer: nn.ConvTranspose2d) -> nn.Conv2d:
    geometry = Transposed(*(_pair(value) for value in (
        layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.dilation,
    )))  # fmt: skip
    (high, wide), (s, _) = geometry.kernel, geometry.stride
    weight = layer.weight.detach()
    outputs = layer.out_channels // layer.groups
    # (in, out / groups, h, w) to (out, in / groups, h, w).
    weight = weight.reshape(layer.groups, -1, outputs, high, wide).transpose(1, 2).reshape(layer.out_channels, -1, high, wide)
    rows, columns = -(-high // s), -(-wide // s)
    weight = F.pad(weight, (0, columns * s - wide, 0, rows * s - high))
    phases = weight.reshape(*weight.shape[:2], rows, s, columns, s).permute(0, 3, 5, 1, 2, 4).flatten(0, 2).flip(2, 3)
    (top, _, _), (left, _, _) = _pads(geometry)
    made: Any = nn.Conv2d(
        layer.in_channels, len(phases), (rows, columns), padding=(top, left), dilation=geometry.dilation, groups=layer.groups,
        bias=layer.bias is not None, device="meta",
    )  # fmt: skip
    made.weight = nn.Parameter(phases.contiguous(), requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach().repeat_interleave(s * s), requires_grad=layer.bias.requires_grad)
    made.transposed = geometry
    return made.train(layer.training)  # type: ignore[no-any-return]


def _transposed(layer: Any) -> nn.ConvTranspose2d:
    geometry: Transposed = layer.transposed
    (high, wide), (s, _) = geometry.kernel, geometry.stride
    phases = layer.weight.detach().flip(2, 3)
    channels, (rows, columns) = len(phases) // (s * s), phases.shape[2:]
    weight = phases.reshape(channels, s, s, -1, rows, columns).permute(0, 3, 4, 1, 5, 2)
    weight = weight.reshape(channels, -1, rows * s, columns * s)[:, :, :high, :wide]
    weight = weight.reshape(layer.groups, channels // layer.groups, -1, high, wide).transpose(1, 2).flatten(0, 1)
    made = nn.ConvTranspose2d(
        layer.in_channels, channels, (high, wide), geometry.stride, geometry.padding, geometry.output_padding, layer.groups,
        layer.bias is not None, geometry.dilation, device="meta",
    )  # fmt: skip
    made.weight = nn.Parameter(weight.contiguous(), requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach()[:: s * s].clone(), requires_grad=layer.bias.requires_grad)
    return made.train(layer.training)


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


def _put_in_place(graph: fx.Graph, end: fx.Node, node: fx.Node, layer: nn.ConvTranspose2d) -> None:
    """Phases to places and the margins off, between ``end`` and what reads it."""
    conv = module_of(node)
    geometry = geometry_of(conv)
    assert geometry is not None
    cuts = [slice(start, -stop or None) for _, start, stop in _pads(geometry)]
    full, s, users = dict(end.meta), geometry.stride[0], list(end.users)
    last = end
    with graph.inserting_after(last):
        if s > 1:
            last = graph.call_function(F.pixel_shuffle, (last, s))
            last.meta = {**full, _MARK: str(node.target)}
    if any(cut != slice(0, None) for cut in cuts):
        with graph.inserting_after(last):
            last = graph.call_function(operator.getitem, (last, (slice(None), slice(None), *cuts)))
            last.meta = {**full, _MARK: str(node.target)}
    for user in users:
        user.replace_input_with(end, last)
    _shapes(end, node, layer, geometry, last)


def _shapes(end: fx.Node, node: fx.Node, layer: nn.ConvTranspose2d, geometry: Transposed, last: fx.Node) -> None:
    """Shapes of the convolution and of what is now before its phases are in their places."""
    shape = node.meta.get("shape")
    if shape is None:
        return
    s, sizes = geometry.stride[0], []
    for size, (_, start, stop) in zip(shape[2:], _pads(geometry), strict=True):
        sizes.append(None if size is None else (size + start + stop) // s)
    inner = (shape[0], layer.out_channels * s * s, *sizes)
    one = node
    while True:
        one.meta = {**one.meta, "shape": inner}
        if one is end:
            break
        (one,) = one.users
    read = source(last)
    if read is not None and read is not end:
        read.meta = {**read.meta, "shape": (shape[0], layer.out_channels, *(None if size is None else size * s for size in sizes))}


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))
