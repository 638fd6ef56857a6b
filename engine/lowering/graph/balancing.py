"""balance: branches of a concatenation that are too narrow for a grid shared with the others, found on a few images and scaled."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from engine.events.cancellation import StopToken
from engine.events.event import Event, LayerRow, Notice
from engine.lowering.graph.balance import Branch, cat_inputs, find_branches
from engine.lowering.graph.balance import balance as balance_graph
from engine.lowering.graph.call import inputs_of
from engine.lowering.graph.layout import Layout, arrange
from engine.models.memory import laid_out
from engine.planning.plan import Plan
from engine.tasks.base import Task

_IMAGES = 64
_AT_ONCE = 8


def balance(
    gm: fx.GraphModule, plan: Plan, layout: Layout, task: Task, items: int, stop: StopToken
) -> Generator[Event, None, tuple[fx.GraphModule, Plan, Layout, tuple[Branch, ...]]]:
    """The graph with its narrow branches scaled, the plan that says so, the layout of both, and the branches. ``items`` that
    calibrate may be looked at; few are enough for a range's power of two."""
    watched = cat_inputs(gm, layout)
    if not watched or not task.calibration_count(1):
        return gm, plan, layout, ()
    batches = (inputs_of(gm, part) for part in task.calibration_batches(batch=_AT_ONCE, limit=min(items, _IMAGES)))
    branches = find_branches(gm, layout, spans(gm, watched, _stoppable(batches, stop)))
    if not branches:
        return gm, plan, layout, ()
    for branch in branches:
        yield Notice(_text(branch), "warning" if branch.reason else "info")
    balanced = balance_graph(gm, branches)
    rows = tuple(_row(row, branches) for row in plan.layers)
    return balanced, replace(plan, layers=rows), arrange(balanced, plan.specs()), branches


def entries(branches: Sequence[Branch]) -> list[dict[str, Any]]:
    """The report's ``balanced``."""
    return [
        {"cat": b.cat, "branch": b.name, "ratio": round(b.ratio, 1), "factor": b.factor, "layers": list(b.layers), "reason": b.reason}
        for b in branches
    ]


def spans(gm: fx.GraphModule, names: Collection[str], batches: Iterator[tuple[Tensor, ...]]) -> dict[str, float]:
    """The largest magnitude of each of the nodes ``names``, on the graph's inputs."""
    seen = _Spans(gm, names)
    with torch.inference_mode():
        for inputs in batches:
            seen.run(*laid_out(inputs))
    return seen.spans


class _Spans(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, names: Collection[str]) -> None:
        super().__init__(gm)
        self._names = names
        self.spans: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._names and value.numel():
            self.spans[n.name] = max(self.spans.get(n.name, 0.0), float(value.abs().amax()))
        return value


def _stoppable(batches: Iterator[tuple[Tensor, ...]], stop: StopToken) -> Iterator[tuple[Tensor, ...]]:
    for inputs in batches:
        stop.check()
        yield inputs


def _text(branch: Branch) -> str:
    narrow = f"{branch.name} is {branch.ratio:.3g}× narrower than what {branch.cat} joins it with"
    if branch.reason:
        return f"{narrow}, and one grid keeps few of its levels ({branch.reason}): keep {', '.join(branch.layers)} in fp32 by a rule"
    if branch.factor == 1:
        return f"{narrow}: it keeps a grid of its own"
    return f"{narrow}: it is scaled by {branch.factor:g} there, undone in the weights of {', '.join(branch.layers)}"


def _row(row: LayerRow, branches: Sequence[Branch]) -> LayerRow:
    about = "; ".join(_text(branch) for branch in branches if row.path in branch.layers)
    return replace(row, why="; ".join(filter(None, (row.why, about)))) if about else row
