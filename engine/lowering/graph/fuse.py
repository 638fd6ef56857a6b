"""Folding batch normalization into the convolution or linear layer before it.

Krishnamoorthi 2018 (arXiv:1806.08342), section 3.2.2: with gamma, beta, mean and variance of the normalization,
w' = w * gamma / sqrt(var + eps) and b' = beta + (b - mean) * gamma / sqrt(var + eps). Computed in float64.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from engine.lowering.graph.call import inputs_of, largest_difference
from engine.lowering.graph.kinds import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED, kind, module_of, source
from engine.tasks.base import Batch

LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
_DIMENSIONS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.ConvTranspose1d: nn.BatchNorm1d,
    nn.ConvTranspose2d: nn.BatchNorm2d,
    nn.ConvTranspose3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}


@dataclass(frozen=True)
class Pair:
    """A convolution (or linear layer) and the batch normalization that reads it, by module path.

    ``reason`` says why the pair cannot be folded, None when it can. ``max_abs_delta`` is the largest change of the
    normalization's output on the example, set once it was folded. ``conv_node`` and ``bn_node`` name their nodes.
    """

    conv: str
    bn: str
    reason: str | None = None
    max_abs_delta: float | None = None
    conv_node: str = field(default="", compare=False)
    bn_node: str = field(default="", compare=False)


def find_pairs(gm: fx.GraphModule) -> tuple[Pair, ...]:
    """All pairs in graph order, each foldable or with the reason why not."""
    calls = Counter(str(node.target) for node in gm.graph.nodes if node.op == "call_module")
    pairs = []
    for node in gm.graph.nodes:
        if kind(node) != "bn":
            continue
        before = source(node)
        if before is not None and kind(before) in ("conv", "conv_transpose", "linear"):
            reason = _refusal(before, node, calls)
            pairs.append(Pair(str(before.target), str(node.target), reason, conv_node=before.name, bn_node=node.name))
    return tuple(pairs)


def _refusal(conv: fx.Node, bn: fx.Node, calls: Counter[str]) -> str | None:
    layer, norm = module_of(conv), module_of(bn)
    assert layer is not None
    assert isinstance(norm, BATCH_NORMS)
    if norm.running_mean is None or norm.running_var is None:
        return f"{bn.target} keeps no running statistics: it normalizes each batch by itself"
    if norm.training or layer.training:
        return "in training mode: the statistics still move"
    if len(conv.users) > 1:
        others = ", ".join(user.name for user in conv.users if user is not bn)
        return f"{conv.target} is also read by {others}"
    for name in (str(conv.target), str(bn.target)):
        if calls[name] > 1:
            return f"{name} is called {calls[name]} times"
    if not isinstance(norm, _DIMENSIONS[type(layer)]):
        return f"{type(norm).__name__} after {type(layer).__name__}"
    if isinstance(layer, nn.Linear) and len(conv.meta.get("shape", (0, 0))) != 2:
        return "the linear layer's features are not the normalized dimension"
    if layer._forward_pre_hooks or layer._forward_hooks:
        return f"{conv.target} has forward hooks, which may change its weights or its result"
    assert isinstance(layer, LAYERS)
    channels = layer.out_channels if isinstance(layer, TRANSPOSED) else layer.weight.shape[0]
    if channels != norm.num_features:
        return f"{channels} channels against {norm.num_features} statistics"
    return None


def folded_parameters(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of the layer that computes ``norm(layer(x))`` in eval mode."""
    assert isinstance(layer, LAYERS)
    assert isinstance(norm, BATCH_NORMS)
    weight = layer.weight.detach().double()
    factor, shift = factor_and_shift(norm, None if layer.bias is None else layer.bias.detach())
    return weight * _along_outputs(layer, factor), shift


def factor_and_shift(norm: nn.Module | None, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What a batch normalization on running statistics multiplies each channel with and adds to it, in float64; with ``bias`` what it
    adds where that was added before."""
    assert isinstance(norm, BATCH_NORMS)
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    factor = torch.rsqrt(var.detach().double() + norm.eps)
    shift = torch.zeros_like(factor)
    if norm.affine:
        factor = factor * norm.weight.detach().double()
        shift = norm.bias.detach().double()
    before = torch.zeros_like(factor) if bias is None else bias.double()
    return factor, shift + (before - mean.detach().double()) * factor


def _along_outputs(layer: nn.Module, factor: Tensor) -> Tensor:
    """A number for each output channel in a shape that multiplies the layer's weight: (out, in / groups, ...), of a transposed
    convolution (in, out / groups, ...)."""
    assert isinstance(layer, LAYERS)
    ones = [1] * (layer.weight.dim() - 2)
    if isinstance(layer, TRANSPOSED):
        return (
            factor.reshape(layer.groups, -1).repeat_interleave(layer.in_channels // layer.groups, 0).reshape(layer.in_channels, -1, *ones)
        )
    return factor.reshape(-1, 1, *ones)


def folded_layer(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """A new layer of the same kind and dtype that computes ``norm(layer(x))``."""
    weight, bias = folded_parameters(layer, norm)
    dtype = next(layer.parameters()).dtype
    new = copy.copy(layer)
    new._parameters = {"weight": nn.Parameter(weight.to(dtype)), "bias": nn.Parameter(bias.to(dtype))}
    return new


def fuse(gm: fx.GraphModule, example: Batch | Tensor, pairs: Iterable[Pair]) -> tuple[fx.GraphModule, tuple[Pair, ...], float]:
    """A new graph in which each pair without a reason is one layer.

    ``example`` is a batch, or a graph's one input. Returns the graph, the pairs with their measured ``max_abs_delta``, and the largest
    change of the model's output.
    """
    chosen = {pair.bn: pair for pair in pairs if pair.reason is None}
    watch, inputs = _Watch(gm), inputs_of(gm, example)
    with torch.no_grad():
        expected = watch.run(*(x.clone() for x in inputs))
    new = copy.deepcopy(gm)
    measured: dict[str, Pair] = {}
    for node in list(new.graph.nodes):
        if kind(node) != "bn" or str(node.target) not in chosen:
            continue
        conv = source(node)
        assert conv is not None
        layer, norm = module_of(conv), module_of(node)
        assert layer is not None
        assert norm is not None
        fused = folded_layer(layer, norm)
        given, wanted = watch.seen[conv.name], watch.outputs[node.name]
        with torch.no_grad():
            delta = (fused(given) - wanted).abs().max().item()
        measured[str(node.target)] = replace(chosen[str(node.target)], max_abs_delta=delta)
        new.set_submodule(str(conv.target), fused)
        node.replace_all_uses_with(conv)
        new.graph.erase_node(node)
    new.delete_all_unused_submodules()
    new.recompile()
    with torch.no_grad():
        change = largest_difference(new(*(x.clone() for x in inputs)), expected)
    return new, tuple(measured.get(pair.bn, pair) for pair in pairs), change


class _Watch(fx.Interpreter):
    """Remembers what each pair's layer was given and what its normalization returned, before anything changes it in place."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.seen: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        before = source(n)
        if kind(n) in ("conv", "conv_transpose", "linear") and before is not None:
            self.seen[n.name] = self.env[before].clone()
        elif kind(n) == "bn":
            self.outputs[n.name] = result.clone()
        return result
