"""coverage: how much of what computes runs on integers, in multiply-adds, and what the rest is."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

from torch import Tensor, fx

from engine.lowering.graph.cost import costs
from engine.lowering.graph.kinds import kind
from engine.lowering.graph.runtime import QuantizedModel
from engine.tasks.base import Batch

_NAMED = 3


@dataclass(frozen=True)
class Rest:
    """An operation that computes in fp32: how many of them there are, and their multiply-adds for one image."""

    operation: str
    count: int
    macs: int


@dataclass(frozen=True)
class Coverage:
    """Multiply-adds for one image: of all that multiplies matrices, and of what of it runs on integers. ``layers`` counts the former,
    ``integer_layers`` the latter; ``rest`` is ordered by multiply-adds, largest first."""

    macs_total: int
    macs_integer: int
    layers: int
    integer_layers: int
    rest: tuple[Rest, ...]

    @property
    def share(self) -> float:
        """0..1; of nothing it is 0."""
        return self.macs_integer / self.macs_total if self.macs_total else 0.0

    def sentence(self) -> str:
        text = (
            f"{self.integer_layers} of {self.layers} convolutions, linear layers and matrix products run on integers: "
            f"{percent(self.share)} of the multiply-adds"
        )
        if not self.rest:
            return text
        named = [f"{rest.operation} ×{rest.count} ({percent(rest.macs / self.macs_total)})" for rest in self.rest[:_NAMED]]
        more = len(self.rest) - _NAMED
        return f"{text}; in fp32: {', '.join(named)}{f' and {more} more kinds' if more > 0 else ''}"

    def entry(self) -> dict[str, object]:
        """The report's ``coverage``."""
        return {**asdict(self), "rest": [asdict(rest) for rest in self.rest], "text": self.sentence()}


def coverage(gm: fx.GraphModule, model: QuantizedModel, image: Batch | Tensor | tuple[Tensor, ...]) -> Coverage:
    """Of ``model``, which was converted from ``gm``, on one item, ``image``: a batch, or the graph's inputs in order."""
    found = costs(gm, image)
    integer = [cost for cost in found if cost.node in model.placement]
    counts: Counter[str] = Counter()
    macs: Counter[str] = Counter()
    stored = {name for name in model.program.layers if name not in model.placement}
    nodes = {node.name: node for node in gm.graph.nodes}
    for cost in found:
        if cost.node in model.placement:
            continue
        name = f"{cost.what} on stored integers" if cost.node in stored else cost.what
        name += "" if kind(nodes[cost.node]) in ("conv", "linear") or nodes[cost.node].op != "call_function" else "()"
        counts[name] += 1
        macs[name] += cost.macs
    rest = tuple(Rest(name, counts[name], total) for name, total in macs.most_common())
    return Coverage(sum(c.macs for c in found), sum(c.macs for c in integer), len(found), len(integer), rest)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.9995 or share == 1 else "99.9 %"
