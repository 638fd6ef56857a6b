"""Channels of unlike ranges brought near one another by factors that move from one layer to the next.

Cross-layer equalization (Nagel et al. 2019, arXiv:1906.04721, section 4.1): a channel is divided by s > 0 where a layer makes it and
multiplied by s where layers read it. Through anything with f(x / s) = f(x) / s the network computes what it did: relu, leaky relu,
PReLU, pooling, padding with zeros. relu6 is such a one for values below 6: channels that come near it keep their range, and others stay
below it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from engine.lowering.graph.balance import Blocks, Reader, columns_of, passed, set_parameters
from engine.lowering.graph.kinds import kind, module_of, source

# Sweeps over all pairs: in a chain of depthwise layers each pair moves its neighbours'.
SWEEPS = 20
# Factors stay within this range, and a sweep that changes none by more than ``ENOUGH`` is the last.
LARGEST, ENOUGH = 2.0**10, 0.01
_MANY = 64
# Where relu6 clips, and how much larger than on the items that were seen a channel may become elsewhere.
CLIP, _MARGIN = 6.0, 1.25
_HOMOGENEOUS = (nn.PReLU, nn.LeakyReLU)


@dataclass(frozen=True)
class Pair:
    """The layer node ``before`` and those that read its channels, by way of ``columns_of`` each; with a ``reason`` it stays as it is.
    ``clipped`` is whether relu6 is between them."""

    before: str
    readers: tuple[Reader, ...]
    reason: str | None = None
    clipped: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(reader.node.target) for reader in self.readers))


def find_pairs(gm: fx.GraphModule) -> tuple[Pair, ...]:
    """Each convolution or linear layer whose result convolutions or linear layers read, in the order of the graph."""
    calls = Counter(str(node.target) for node in gm.graph.nodes if node.op == "call_module")
    found = []
    for node in gm.graph.nodes:
        shape = node.meta.get("shape", ())
        if kind(node) not in ("conv", "linear") or len(shape) < 2:
            continue
        axis = 1 if kind(node) == "conv" else len(shape) - 1
        channels = shape[axis]
        if not isinstance(channels, int):
            continue
        readers: list[Reader] = []
        clips: list[fx.Node] = []
        reason = _collect(node, Blocks(axis, tuple((channel,) for channel in range(channels))), readers, clips)
        twice = next((path for path in (str(node.target), *(str(r.node.target) for r in readers)) if calls[path] > 1), None)
        reason = f"{twice} is called {calls[twice]} times" if twice else reason
        if readers or reason:
            found.append(Pair(node.name, tuple(readers), reason, bool(clips)))
    return tuple(found)


def _collect(node: fx.Node, blocks: Blocks, readers: list[Reader], clips: list[fx.Node]) -> str | None:
    """Gather the layers that read ``node``, and each relu6 before them; a sentence where something else does, which no factor goes
    through."""
    for user in node.users:
        if kind(user) in ("conv", "linear") and source(user) is node:
            if blocks.axis != (1 if kind(user) == "conv" else len(node.meta["shape"]) - 1):
                return f"{user.target} sums over another dimension"
            readers.append(Reader(user, blocks.places))
            continue
        if kind(user) == "relu6":
            clips.append(user)
        alike = kind(user) == "relu6" or _homogeneous(user)
        through = blocks if alike else None if kind(user) == "cat" else passed(node, user, blocks)
        if through is None or len(readers) > _MANY:
            return f"{user.name} reads it too"
        problem = _collect(user, through, readers, clips)
        if problem is not None:
            return problem
    return None


def _homogeneous(node: fx.Node) -> bool:
    return isinstance(module_of(node), _HOMOGENEOUS) or node.target in (F.leaky_relu, F.prelu, torch.prelu)


def factors(gm: fx.GraphModule, pairs: Iterable[Pair], spans: Mapping[str, Tensor], per_tensor: Iterable[str] = ()) -> dict[str, Tensor]:
    """What each pair's channels are divided by, by node of its first layer: s = sqrt(r1 / r2), so that both ranges become
    sqrt(r1 r2) (equation 11). r2 is the largest magnitude of the readers' weights on a channel. r1 is that of the first layer's weights
    where one scale serves all of them (the paths ``per_tensor``); where each output has its own, the channel's largest activation,
    ``spans`` by node, in parts of the largest of all. Channels that are always zero keep 1, and so do those of a clipped pair that come
    near 6; the others of it stay below."""
    nodes = {node.name: node for node in gm.graph.nodes}
    chosen = [pair for pair in pairs if pair.reason is None]
    found = {pair.before: torch.ones(len(spans[pair.before]), dtype=torch.float64) for pair in chosen}
    weights = {path: _weight(gm, path).double().clone() for path in _paths(nodes, chosen)}
    by_tensor, seen = frozenset(per_tensor), {name: span.double().clone() for name, span in spans.items()}
    for _ in range(SWEEPS):
        largest = 0.0
        for pair in chosen:
            path = str(nodes[pair.before].target)
            above = weights[path].flatten(1).abs().amax(1) if path in by_tensor else seen[pair.before]
            below = _below(pair, weights)
            usable = (above > 0) & (below > 0)
            ratio = torch.where(usable, above / below.clamp_min(1e-30), torch.ones_like(above))
            factor = ratio.sqrt()
            # Only what differs between channels matters: the whole keeps its range.
            factor = torch.where(
                usable, factor / factor[usable].log().mean().exp() if bool(usable.any()) else factor, torch.ones_like(factor)
            )
            whole = (found[pair.before] * factor).clamp(1 / LARGEST, LARGEST)
            if pair.clipped:
                reach = spans[pair.before].double() * _MARGIN / CLIP
                whole = torch.where(reach < 1, torch.maximum(whole, reach), torch.ones_like(whole))
            factor = whole / found[pair.before]
            found[pair.before] *= factor
            seen[pair.before] /= factor
            weights[path] /= factor.reshape(-1, *[1] * (weights[path].dim() - 1))
            for reader in pair.readers:
                _multiply(reader, weights[str(reader.node.target)], factor)
            largest = max(largest, factor.log().abs().max().item())
        if largest < ENOUGH:
            break
    return found


def equalize(gm: fx.GraphModule, pairs: Iterable[Pair], by: Mapping[str, Tensor]) -> fx.GraphModule:
    """A new graph that computes what ``gm`` does, each pair's channels divided by its factors (of ``factors``) and its readers' weights
    multiplied; ``gm`` is not changed."""
    new = copy.deepcopy(gm)
    nodes = {node.name: node for node in new.graph.nodes}
    for pair in pairs:
        if pair.reason is not None:
            continue
        factor = by[pair.before].float()
        path = str(nodes[pair.before].target)
        layer: Any = new.get_submodule(path)
        weight = layer.weight.detach() / factor.reshape(-1, *[1] * (layer.weight.dim() - 1))
        set_parameters(new, path, weight=weight, bias=None if layer.bias is None else layer.bias.detach() / factor)
        for reader in pair.readers:
            read: Tensor = _weight(new, str(reader.node.target)).clone()
            _multiply(reader, read, factor)
            set_parameters(new, str(reader.node.target), weight=read)
    new.recompile()
    return new


def _paths(nodes: Mapping[str, fx.Node], pairs: Iterable[Pair]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(path for pair in pairs for path in (str(nodes[pair.before].target), *pair.paths)))


def _weight(gm: fx.GraphModule, path: str) -> Tensor:
    layer: Any = gm.get_submodule(path)
    weight: Tensor = layer.weight.detach()
    return weight


def _below(pair: Pair, weights: Mapping[str, Tensor]) -> Tensor:
    """The largest magnitude of the readers' weights on each channel."""
    found = []
    for reader in pair.readers:
        weight = weights[str(reader.node.target)]
        tops = []
        for block in reader.columns:
            parts = columns_of(module_of(reader.node), weight, block)
            tops.append(max(weight[rows][:, columns].abs().max() for rows, columns in parts))
        found.append(torch.stack(tops))
    return torch.stack(found).amax(0)


def _multiply(reader: Reader, weight: Tensor, factor: Tensor) -> None:
    """In place, what ``weight`` has for each channel."""
    for block, by in zip(reader.columns, factor, strict=True):
        for rows, columns in columns_of(module_of(reader.node), weight, block):
            weight[rows, columns] = weight[rows, columns] * by
