"""Scaling the input of linear layers without a multiplication at run time: the layer before takes the scale back.

Nothing is known here of families of models. Which layers share an input, and which norm or linear layer feeds them, is
seen in one forward pass; that a scale may be folded there is tried on it: the block's output must not move. So a norm whose
output is used elsewhere, Gemma's ``1 + weight``, a GELU in between or keys and values shared by heads are each refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from engine.lowering.modules.block_linears import Linear
from engine.lowering.modules.capture import Batch, left_beside, run_block

# Folding moves the block's output by rounding alone. Relative to the largest change a block makes.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Source:
    """What produces an input: a norm's weight (in,) and bias, or the last rows of a linear layer's weight and bias, as the
    values of a fused query-key-value layer are."""

    name: str
    parts: tuple[Callable[[], Tensor], ...]

    @torch.no_grad()
    def divide(self, scale: Tensor) -> None:
        """Divide what the source puts out by ``scale`` (in,), in place."""
        for part in self.parts:
            held = part()
            held.div_(scale.reshape(-1, *[1] * (held.dim() - 1)).to(held.dtype))


@dataclass(frozen=True)
class Group:
    """Linear layers with one input, in the order in which the block runs its groups, and what may take a scale back. ``once`` is
    whether they run once in the block; those that run several times have the same inputs each time."""

    members: tuple[Linear, ...]
    source: Source | None = None
    once: bool = True

    @torch.no_grad()
    def fold(self, scale: Tensor) -> None:
        """Scale the common input by 1 / ``scale`` (in,) and the columns of the weights by ``scale``, in place."""
        assert self.source is not None
        self.source.divide(scale)
        for member in self.members:
            columns = member.held.T if member.transposed else member.held
            columns.mul_(scale.to(columns.dtype))


def groups_of(block: nn.Module, found: Sequence[Linear], batch: Batch, index: int, fold: bool = True) -> list[Group]:
    """The groups of ``found`` as ``block`` runs them on ``batch``. A layer that the batch does not reach, as an expert that is not
    chosen, is left out. ``fold=False`` does not look for sources."""
    by_module = {matrix.module: matrix for matrix in found}
    norms = {m: name for name, m in block.named_modules() if m not in by_module and _is_norm(m)}
    calls: dict[nn.Module, list[Tensor]] = {}
    made: list[tuple[str, nn.Module, Tensor]] = []

    def enters(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls.setdefault(module, []).append(args[0])

    def leaves(module: nn.Module, args: object, output: Tensor) -> None:
        made.append((norms[module], module, output))

    hooks = [matrix.module.register_forward_pre_hook(enters) for matrix in found]
    hooks += [norm.register_forward_hook(leaves) for norm in norms]
    try:
        with torch.no_grad():
            before = [run_block(block, batch, index), *left_beside(batch, index)]
    finally:
        for hook in hooks:
            hook.remove()
    entered: dict[tuple[int, ...], list[Linear]] = {}
    for module, inputs in calls.items():
        entered.setdefault(tuple(id(x) for x in inputs), []).append(by_module[module])
    groups: list[Group] = []
    for members in entered.values():
        inputs = calls[members[0].module]
        group = Group(tuple(members), once=len(inputs) == 1)
        if fold:
            candidates = [_norm_source(name, module) for name, module, output in made if output is inputs[0]]
            earlier = [matrix for other in groups for matrix in other.members]
            candidates += [source for matrix in reversed(earlier) for source in _linear_sources(matrix, members[0].shape[1])]
            group = next((g for g in (replace(group, source=c) for c in candidates) if _unmoved(block, g, batch, index, before)), group)
        groups.append(group)
    return groups


def _unmoved(block: nn.Module, group: Group, batch: Batch, index: int, before: Sequence[Tensor]) -> bool:
    """Whether a scale between 1/2 and 2 leaves the block's output as it is, and what later blocks read of it beside that. The block
    is put back bit for bit."""
    assert group.source is not None
    inputs = group.members[0].shape[1]
    scale = torch.exp2(torch.linspace(-1, 1, inputs, dtype=torch.float64)[torch.randperm(inputs, generator=_seeded())])
    scale = scale.to(before[0].device, before[0].dtype)
    held = [member.held.detach() for member in group.members] + [part() for part in group.source.parts]
    kept = [tensor.clone() for tensor in held]
    try:
        group.fold(scale)
        with torch.no_grad():
            after = [run_block(block, batch, index), *left_beside(batch, index)]
    finally:
        for tensor, value in zip(held, kept, strict=True):
            with torch.no_grad():
                tensor.copy_(value)
    change = (before[0] - batch.hidden).abs().max().clamp_min(1e-6)
    allowed = [torch.maximum(change, before[0].abs().max() * 1e-2), *(tensor.abs().max() for tensor in before[1:])]
    moved = [(new - old).abs().max() for new, old in zip(after, before, strict=True)]
    return all(bool(by <= TOLERANCE * most) for by, most in zip(moved, allowed, strict=True))


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 1 and not list(module.children())


def _norm_source(name: str, norm: nn.Module) -> Source:
    parts = [partial(_last_rows, norm, "weight", 0, False)]
    if isinstance(getattr(norm, "bias", None), nn.Parameter):
        parts.append(partial(_last_rows, norm, "bias", 0, False))
    return Source(name, tuple(parts))


def _linear_sources(matrix: Linear, width: int) -> list[Source]:
    """The whole output of ``matrix`` where it is ``width`` wide, or its last third where it is three times that."""
    out = matrix.shape[0]
    if out not in (width, 3 * width):
        return []
    parts = [partial(_last_rows, matrix.module, "weight", out - width, matrix.transposed)]
    if matrix.bias is not None:
        parts.append(partial(_last_rows, matrix.module, "bias", out - width, False))
    return [Source(matrix.name, tuple(parts))]


def _last_rows(module: nn.Module, kind: str, start: int, transposed: bool) -> Tensor:
    """A view of the parameter's output rows from ``start`` on."""
    parameter: Tensor = getattr(module, kind).detach()
    return (parameter.T if transposed else parameter)[start:]
