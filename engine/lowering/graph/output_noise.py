"""The layers whose results leave a network, and what 8 bits alone cost each of them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from engine.lowering.graph.call import inputs_of
from engine.lowering.graph.kinds import kind
from engine.numerics.qparams import affine, dequantize, quantize
from engine.numerics.sqnr import sqnr_db
from engine.planning.layer import Output
from engine.tasks.base import Batch

_WEIGHTS = 127


def output_layers(gm: fx.GraphModule) -> tuple[str, ...]:
    """The convolutions and linear layers (module paths) behind which no other comes before the network's outputs."""
    found: dict[str, None] = {}
    seen: set[fx.Node] = set()
    waiting = [node for node in gm.graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if kind(node) in ("conv", "linear") and node.op == "call_module":
            found[str(node.target)] = None
        else:
            waiting += node.all_input_nodes
    return tuple(found)


def outputs(gm: fx.GraphModule, what: str, batch: Batch, activation_bits: int) -> dict[str, Output]:
    """By module path each output layer, with the SQNR that is left of its result where its weights have 8 bits per channel and its input
    ``activation_bits``, all else in fp32. ``what`` says what the outputs are."""
    paths = output_layers(gm)
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {path: [] for path in paths}
    handles = [
        gm.get_submodule(path).register_forward_hook(lambda _, given, result, path=path: seen[path].append((given[0], result)))
        for path in paths
    ]
    try:
        with torch.inference_mode():
            gm(*inputs_of(gm, batch))
            return {path: Output(what, _left(gm.get_submodule(path), seen[path], activation_bits)) for path in paths}
    finally:
        for handle in handles:
            handle.remove()


def _left(module: nn.Module, calls: list[tuple[Tensor, Tensor]], bits: int) -> float:
    rounded, weight = copy.deepcopy(module), module.weight
    assert isinstance(weight, Tensor)
    scale = weight.abs().flatten(1).amax(1).clamp(min=torch.finfo(torch.float32).tiny) / _WEIGHTS
    shape = (-1, *[1] * (weight.dim() - 1))
    rounded.weight = nn.Parameter((weight / scale.view(shape)).round() * scale.view(shape), requires_grad=False)
    signal = noise = 0.0
    for given, result in calls:
        grid = affine(given.min().item(), given.max().item(), bits)
        change = rounded.forward(dequantize(quantize(given, grid), grid)) - result
        signal += result.double().square().sum().item()
        noise += change.double().square().sum().item()
    return sqnr_db(signal, noise)
