"""How much of a model with islands runs on integers, what each island takes, and what runs between them."""

from __future__ import annotations

import statistics
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from engine.lowering.graph.cost import decomposed
from engine.lowering.graph.coverage import Coverage, Rest, coverage, percent
from engine.lowering.islands.find import Island
from engine.lowering.islands.model import IslandsModel
from engine.lowering.islands.union import Part
from engine.machine.repeats import passes
from engine.tasks.base import Batch

_NAMED = 3


@dataclass(frozen=True)
class Between:
    """What computes outside of the islands on one item: a module or, with an empty ``path``, products in the model's own Python.
    ``macs`` are its multiply-adds."""

    path: str
    kind: str
    macs: int


@dataclass(frozen=True)
class Profile:
    """Of one item in fp32: each island's part (0..1) of the time, all multiply-adds, and what computes ``between``, largest first.
    ``islands`` are the multiply-adds of each island's calls."""

    time_shares: Mapping[str, float]
    macs: int
    islands: Mapping[str, int]
    between: tuple[Between, ...]

    @property
    def time_between(self) -> float:
        return max(1.0 - sum(self.time_shares.values()), 0.0)


def profile(root: nn.Module, islands: Sequence[Island], example: Batch) -> Profile:
    """``root`` on ``example``, one item."""
    shares = _shares(root, [island.path for island in islands], example)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), decomposed(), warnings.catch_warnings(), counter:
        warnings.simplefilter("ignore")  # torch's, of graphics cards, where oneDNN is switched.
        root(*example.args, **example.kwargs)
    by_module = {name.partition(".")[2]: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items() if "." in name}
    total = counter.get_total_flops() // 2
    own = {island.path: by_module.get(island.path, 0) for island in islands}
    starts = tuple(f"{path}." for path in own)
    outside = {name: macs for name, macs in by_module.items() if macs and name not in own and not f"{name}.".startswith(starts)}
    leaves = {name: macs for name, macs in outside.items() if not any(other.startswith(f"{name}.") for other in by_module)}
    between = [Between(name, type(root.get_submodule(name)).__name__, macs) for name, macs in leaves.items()]
    rest = total - sum(own.values()) - sum(leaves.values())
    between += [Between("", "products in Python", rest)] if rest > 0 else []
    return Profile(shares, total, own, tuple(sorted(between, key=lambda one: -one.macs)))


def _shares(root: nn.Module, paths: Sequence[str], example: Batch) -> dict[str, float]:
    """The part of the time that each of the modules takes, as the median of a few forwards."""
    started: dict[str, float] = {}
    spent: Counter[str] = Counter()

    def begin(path: str, *_: Any) -> None:
        started[path] = time.perf_counter()

    def end(path: str, *_: Any) -> None:
        spent[path] += time.perf_counter() - started[path]  # type: ignore[assignment]

    found: dict[str, list[float]] = {path: [] for path in paths}
    with ExitStack() as stack, torch.inference_mode():
        for path in paths:
            module = root.get_submodule(path)
            for handle in (module.register_forward_pre_hook(partial(begin, path)), module.register_forward_hook(partial(end, path))):
                stack.callback(handle.remove)
        for number in passes():
            spent.clear()
            start = time.perf_counter()
            root(*example.args, **example.kwargs)
            whole = time.perf_counter() - start
            for path in paths if number else ():
                found[path].append(spent[path] / whole)
    return {path: statistics.median_low(values) for path, values in found.items()}


@dataclass(frozen=True)
class IslandsCoverage:
    """``whole`` is of the model, each of ``islands`` (by path) of all calls of one island, on one item."""

    whole: Coverage
    islands: Mapping[str, Coverage]
    profile: Profile
    kinds: Mapping[str, str]
    calls: Mapping[str, int]

    def entry(self) -> dict[str, object]:
        """The report's ``coverage``."""
        rows = [
            {
                "path": path, "kind": self.kinds[path], "calls": self.calls[path], "macs": one.macs_total, "macs_integer": one.macs_integer,
                "layers": one.layers, "integer_layers": one.integer_layers,
                "time_share": round(self.profile.time_shares.get(path, 0.0), 4),
            }
            for path, one in self.islands.items()
        ]  # fmt: skip
        between = {"time_share": round(self.profile.time_between, 4), "macs": [asdict(one) for one in self.profile.between]}
        return {**self.whole.entry(), "text": self.sentence(), "islands": rows, "between": between}

    def sentence(self) -> str:
        """The part of the multiply-adds on integers, and what runs between the islands."""
        macs, count = self.profile.macs, len(self.islands)
        share = self.whole.macs_integer / macs if macs else 0.0
        text = (
            f"{count} island{'' if count == 1 else 's'} with {self.whole.integer_layers} of {self.whole.layers} convolutions, linear "
            f"layers and matrix products on integers: {percent(share)} of the model's multiply-adds; between them the model's own Python, "
            f"{percent(self.profile.time_between)} of the fp32 time"
        )
        named = [f"{one.path or one.kind} ({percent(one.macs / macs)})" for one in self.profile.between[:_NAMED] if macs]
        return f"{text}; in fp32 there: {', '.join(named)}" if named else text


def covered(found: Profile, islands: Sequence[Island], parts: Sequence[Part], model: IslandsModel) -> IslandsCoverage:
    """``parts`` are the float islands that ``model`` was converted from."""
    by_path = {
        part.path: _of_calls([coverage(part.graph, quantized.model, inputs) for inputs in island.calls])
        for island, part, quantized in zip(islands, parts, model.islands, strict=True)
    }
    inside = _sum(list(by_path.values()))
    rest = Counter({one.operation: one.macs for one in inside.rest})
    counts = Counter({one.operation: one.count for one in inside.rest})
    for one in found.between:
        rest[f"{one.kind} between islands"] += one.macs
        counts[f"{one.kind} between islands"] += 1
    ordered = tuple(Rest(name, counts[name], macs) for name, macs in rest.most_common())
    whole = Coverage(max(found.macs, inside.macs_integer), inside.macs_integer, inside.layers, inside.integer_layers, ordered)
    kinds = {island.path: island.kind for island in islands}
    return IslandsCoverage(whole, by_path, found, kinds, {island.path: len(island.calls) for island in islands})


def _of_calls(calls: Sequence[Coverage]) -> Coverage:
    """The layers of an island once, and the multiply-adds of all its calls."""
    return replace(_sum(calls), layers=calls[0].layers, integer_layers=calls[0].integer_layers)


def _sum(found: Sequence[Coverage]) -> Coverage:
    rest: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for one in found:
        rest.update({part.operation: part.macs for part in one.rest})
        counts.update({part.operation: part.count for part in one.rest})
    ordered = tuple(Rest(name, counts[name], macs) for name, macs in rest.most_common())
    return Coverage(
        sum(one.macs_total for one in found), sum(one.macs_integer for one in found), sum(one.layers for one in found),
        sum(one.integer_layers for one in found), ordered,
    )  # fmt: skip
