"""A plan that meets the targets of a recipe: the cheapest remedy first, each tried on validation, until all targets are met."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engine.errors import Cancelled
from engine.events.cancellation import StopToken
from engine.events.event import Event, LayerRow, Notice, Progress, Table
from engine.kernels.probe import Machine
from engine.lowering.base import Baseline, Lowering
from engine.machine import ranks
from engine.paths import save
from engine.planning import search
from engine.planning.plan import Plan
from engine.planning.sensitivity import Sensitivity, cured
from engine.planning.size import layer_bytes, predicted_bytes, weight_bytes
from engine.reading import MB, read_json
from engine.recipe.changes import with_repairs, with_strategy
from engine.recipe.decisions import Answer
from engine.recipe.recipe import Recipe
from engine.recipe.spec import LayerSpec
from engine.recipe.targets import Target, parsed
from engine.recipe.threshold import Threshold
from engine.runs.remembered import Remembered
from engine.runs.work import Run, Work
from engine.tasks.base import Task, forward_of
from engine.tasks.evaluate import evaluate

STATE = "search.json"
TRIALS = "checkpoints/search"
_OBSERVERS = ("percentile", "histogram-mse")
# Methods by what they cost, and how many layers are given back their bits at a time.
_FIRST = ("gptq", "gptq+")
_WORST = (1, 2, 4, 8)
# What of a trial is in its file alone.
_UNTOLD = ("rules", "preset", "repairs")
_REPAIRS = {"bias_correction": "biases corrected", "bn_reestimation": "normalizations re-estimated", "equalize": "channels equalized"}
_LARGEST_STATE = 16 * MB
_SLACK = 1e-9
# How far a prediction of a file's size may be off, as a factor and in bytes of text; how often a plan is corrected.
_LIKELY, _TEXT, _CORRECTIONS = 1.05, 2000, 3
_EIGHT = 8


@dataclass(frozen=True)
class Tried:
    """One remedy as it was measured on validation, ``repairs`` among it. ``drop`` is what the metric lost, ``gain`` by how much less than
    the best before; ``size`` and ``latency`` are parts of fp32's, ``bpw`` bits per weight, ``harm`` the estimated rise of the loss;
    ``latency`` and ``harm`` are None where they were not looked at. ``kept`` is whether the next remedy went on from it."""

    title: str
    key: str
    preset: str
    rules: tuple[dict[str, Any], ...]
    value: float
    drop: float
    size_bytes: int
    size: float
    bpw: float
    seconds: float
    met: bool
    gain: float | None = None
    latency_ms: float | None = None
    latency: float | None = None
    harm: float | None = None
    kept: bool = False
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Remedy:
    """``sized`` is whether it is made for the limits: what it cannot meet, better rounding does not. ``repairs`` are the recipe's keys
    of what is done beside rounding."""

    title: str
    specs: Mapping[str, LayerSpec] | None
    sized: bool = False
    repairs: tuple[str, ...] = ()


class _Trial:
    """The run of one trial: it decides nothing and writes nothing but checkpoints."""

    attended = False

    def __init__(self, work: Work, recipe: Recipe, directory: Path) -> None:
        self.recipe, self.directory = recipe, directory
        self.machine: Machine = work.machine
        self.stop: StopToken = work.stop
        self.threshold: Threshold = work.threshold
        self.identity = work.identity

    def stage(self, name: str, title: str, steps: Generator[Event, Any, Any]) -> Run[Any]:
        return (yield from steps)

    def ask(self, key: Any, question: str, needed: bool = False, default: bool = True) -> Run[Answer]:
        yield from ()
        return default

    def change(self, recipe: Recipe) -> Run[None]:
        yield from ()
        self.recipe = recipe

    def keep(self, recipe: Recipe) -> None:
        self.recipe = recipe


class Search:
    """One search, for ``work`` on ``lowering``, which has planned ``plan``; ``estimate`` gives the sensitivity when it is needed.

    State is in the run's folder after every trial: what was tried is not tried again, and a trial that was cut off begins anew.
    """

    def __init__(
        self, work: Work, lowering: Lowering, task: Task, plan: Plan, device: str, estimate: Callable[[], Run[Sensitivity]], identity: str
    ) -> None:
        self.work, self.lowering, self.task, self.plan, self.device = work, lowering, task, plan, device
        self.targets = parsed(work.recipe.targets)
        self._estimate = estimate
        self._path = work.directory / STATE
        self._identity = f"{identity} {' '.join(map(str, self.targets))} {work.recipe.data.calibration} {work.recipe.seed}"
        self._known: dict[str, Tried] = {}
        self.tried: list[Tried] = []
        self.chosen: Tried | None = None
        self.skipped: list[dict[str, str]] = []
        self.front: tuple[dict[str, Any], ...] = ()
        self._sensitivity: Sensitivity | None = None
        self._bytes, self._pace = 0.0, 1.0
        self._reference: Remembered | None = None
        self._specs: Mapping[str, LayerSpec] = plan.specs()
        self._repairs: tuple[str, ...] = ()
        self._read()

    # What is asked.

    def _target(self, kind: str) -> Target | None:
        return next((target for target in self.targets if target.kind == kind), None)

    @property
    def _limits(self) -> tuple[Target, ...]:
        return tuple(target for target in self.targets if target.kind != "drop")

    @property
    def most_drop(self) -> float | None:
        """The drop that is allowed: the target's, or the threshold's where that is about a drop."""
        target, threshold = self._target("drop"), self.work.threshold
        return target.value if target else threshold.value if threshold.metric == "drop" else None

    # The search.

    def run(self) -> Run[Plan]:
        """The plan that meets the targets, or comes nearest; the recipe has its rules then."""
        if self.chosen is None:
            baseline = self.lowering.baseline()
            begun = self.work.stop.clock()
            yield Notice(f"searching for {', '.join(map(str, self.targets))}: the cheapest remedy first, each tried on validation")
            try:
                yield from self._search(baseline)
            finally:
                if ranks.is_first():
                    with suppress(OSError):
                        shutil.rmtree(self.work.directory / TRIALS)
            self.chosen = self._best()
            if self.chosen is None:
                yield Notice("no plan could be tried: the run goes on as asked", "warning")
                return self.plan
            self._write()
            took = self.work.stop.clock() - begun
            met = "meets all targets" if self.chosen.met else "comes nearest; no remedy before training met all targets"
            yield Notice(f"{self.chosen.title} {met} on validation, after {len(self.tried)} trials in {took:.0f} s")
        yield self._table()
        recipe = self.work.recipe
        rules = [part.rule() for part in Recipe.make(model="any", rules=list(self.chosen.rules)).rules]
        yield from self.work.change(with_repairs(with_strategy(recipe, self.chosen.preset, rules), self.chosen.repairs))
        return (yield from self.lowering.plan())

    def _search(self, baseline: Baseline) -> Run[None]:
        best: Tried | None = None
        for remedy in self._remedies():
            if isinstance(remedy, _Remedy):
                if best is not None and self._is_least(best) and not remedy.sized:
                    told = ", ".join(self.over(best))
                    self.skipped.append(
                        {"title": "what else rounds better", "why": f"the drop is met, and nothing is smaller or faster ({told})"}
                    )
                    return
                tried = yield from self._try(remedy, baseline, best)
                if tried is None:
                    continue
                self.tried.append(tried)
                self._write()
                if best is None or self._rank(tried) < self._rank(best):
                    best, self._specs, self._repairs = tried, remedy.specs or self._specs, remedy.repairs
                    self.tried[-1] = replace(tried, kept=True)
                    self._write()
                if tried.met:
                    return
            else:
                # Estimates are made once they are needed.
                self._sensitivity = yield from self._estimate()
                self.front = tuple(
                    {"size_bytes": self._base() + plan.file_bytes, "bpw": round(plan.bits_per_weight, 4), "harm": plan.harm}
                    for plan in search.front(search.items_of(self.plan.layers, self._sensitivity))
                )

    def _remedies(self) -> Iterator[_Remedy | None]:
        """The remedies in the order of their cost; None asks for the estimate. Each goes on from the best plan so far."""
        rows = self.plan.layers
        if self._fits(self.plan.specs()):
            yield _Remedy("as proposed" if self.work.recipe.preset == "default" and not self.work.recipe.rules else "as asked", None)
        else:
            told = f"{self._size(self.plan.specs()) / self._fp32():.3f} of fp32, {self._bits(self.plan.specs()):.2f} bits per weight"
            self.skipped.append({"title": "as proposed", "why": f"predicted {told}: it cannot meet the targets"})
        if self._limits:
            yield None
            yield from self._mixed()
        yield from self._rounded_better()
        if self._sensitivity is None:
            yield None
        if not self._limits:
            for count in _WORST:
                changed = self._without_worst(self._specs, count)
                if changed is not None:
                    yield self._remedy(f"{count} worst layer{'s' if count > 1 else ''} given more bits", changed)
        methods = dict.fromkeys(name for row in rows for name in row.capabilities.methods)
        for name in methods:
            if name in (*_FIRST, "nearest", "mse"):
                continue
            changed = self._with_method(self._specs, name)
            if changed is not None:
                yield self._remedy(name, changed)

    def _rounded_better(self) -> Iterator[_Remedy]:
        """What takes seconds and changes neither sizes nor times."""
        for name in _FIRST:
            changed = self._with_method(self._specs, name)
            if changed is not None:
                yield self._remedy(f"{name.upper()}", changed)
        for observer in _OBSERVERS:
            changed = _with_observer(self._specs, self.plan.layers, observer)
            if changed is not None:
                yield self._remedy(f"{observer} observers", changed)
        for name in self.lowering.repairs:
            if not getattr(self.work.recipe, name):
                yield self._remedy(_REPAIRS[name], self._specs, (*self._repairs, name))

    def _remedy(self, title: str, specs: Mapping[str, LayerSpec], repairs: tuple[str, ...] | None = None) -> _Remedy:
        """One that goes on from the best plan so far."""
        return _Remedy(title, specs, repairs=self._repairs if repairs is None else repairs)

    # What remedies are made of.

    def _mixed(self) -> Iterator[_Remedy]:
        """The best plan within the limits, and that by what a trial of the first has shown them to be."""
        planned = self._solved()
        if planned is None:
            self.skipped.append({"title": "mixed precision", "why": "no layer can be changed"})
            return
        yield _Remedy("mixed precision, rounded to nearest", planned, sized=True)
        for _ in range(_CORRECTIONS):
            last = self.tried[-1] if self.tried else None
            if last is None:
                return
            self._corrected(planned, last)
            again = self._solved()
            if again is None or again == planned:
                return
            planned = again
            yield _Remedy("mixed precision, corrected by what was measured", planned, sized=True)

    def _solved(self) -> Mapping[str, LayerSpec] | None:
        """The plan of least harm within the limits, or the nearest to them; None where there is nothing to choose."""
        assert self._sensitivity is not None
        items = search.items_of(self.plan.layers, self._sensitivity)
        found = search.solve(items, self._bounds())
        if found is None:
            # Predictions may be wrong by a little: the smallest plan tells.
            size = search.solve(items, search.Limits(), lambda choice: 8 * choice.weight_bytes + choice.file_bytes)
            found = search.solve(items, search.Limits(size.file_bytes, size.bits_per_weight)) if size else None
        return None if found is None else {**self.plan.specs(), **found.specs}

    def _corrected(self, planned: Mapping[str, LayerSpec], tried: Tried) -> None:
        """Take in by how much a trial's file and time differ from what was predicted."""
        self._bytes = tried.size_bytes - self._size(planned)
        latency = self._target("latency")
        have = (tried.latency_ms if latency.unit else tried.latency) if latency else None
        if latency and have and have > latency.value:
            self._pace *= latency.value / have

    def _bounds(self) -> search.Limits:
        size, bits, latency = (self._target(kind) for kind in ("size", "bpw", "latency"))
        times = [row.fp32_ms for row in self.plan.layers if row.editable and row.fp32_ms is not None]
        limit = None if size is None else self._most_bytes(size) - self._base() - self._bytes
        ms = None
        if latency is not None and times:
            ms = self._pace * latency.value * (1.0 if latency.unit else math.fsum(times))
        return search.Limits(limit, bits.value if bits else None, ms)

    def _most_bytes(self, size: Target) -> float:
        return size.value if size.unit else size.value * self._fp32()

    def _fp32(self) -> int:
        return self.lowering.baseline().size_bytes

    def _base(self) -> int:
        """Bytes of the file beside what layers add to it."""
        rows, specs = self.plan.layers, self.plan.specs()
        return predicted_bytes(self._fp32(), rows, specs) - sum(layer_bytes(row, specs[row.path]) for row in rows)

    def _size(self, specs: Mapping[str, LayerSpec]) -> int:
        return predicted_bytes(self._fp32(), self.plan.layers, specs)

    def _bits(self, specs: Mapping[str, LayerSpec]) -> float:
        """Bits per weight of layers that can be quantized."""
        rows = [row for row in self.plan.layers if row.editable and row.tied is None and row.weight_shape]
        total = sum(math.prod(row.weight_shape) for row in rows)
        return 8.0 * sum(weight_bytes(row, specs[row.path].weights) for row in rows) / (total or 1)

    def _fits(self, specs: Mapping[str, LayerSpec]) -> bool:
        """Whether a plan may meet the targets that are known before it is tried."""
        size, bits = self._target("size"), self._target("bpw")
        small = size is None or self._size(specs) <= self._most_bytes(size) * _LIKELY + _TEXT
        return small and (bits is None or self._bits(specs) <= bits.value)

    def _with_method(self, specs: Mapping[str, LayerSpec], name: str) -> Mapping[str, LayerSpec] | None:
        found = dict(specs)
        for row in self.plan.layers:
            spec = specs[row.path]
            if not _free(row) or spec.weights is None or name not in row.capabilities.methods or spec.weights.format:
                continue
            found[row.path] = replace(spec, weights=replace(spec.weights, method=name))
        return found if found != specs else None

    def _without_worst(self, specs: Mapping[str, LayerSpec], count: int) -> Mapping[str, LayerSpec] | None:
        """The layers that cost most in eight bits, those that have them in fp32."""
        if self._sensitivity is None:
            return None
        free = {row.path: row for row in self.plan.layers if _free(row)}
        worst = [path for path, _ in self._sensitivity.ranked(specs) if path in free][:count]
        found = dict(specs)
        for path in worst:
            row = replace(free[path], actual=specs[path])
            weights = specs[path].weights
            for rule in cured([row], [path], "w8a8" if weights is not None and weights.bits < _EIGHT else "fp32"):
                found[path] = rule.spec
        return found if found != specs else None

    # One trial.

    def _try(self, remedy: _Remedy, baseline: Baseline, best: Tried | None) -> Run[Tried | None]:
        recipe = with_repairs(self._recipe(remedy.specs), remedy.repairs)
        asked = f"{recipe.preset} {recipe.model_dump_json(include={'rules'})}{''.join(f' {name}' for name in remedy.repairs)}"
        key = hashlib.sha256(asked.encode()).hexdigest()[:16]
        if any(one.key == key for one in self.tried):
            return None
        if key in self._known:
            return replace(self._known[key], kept=False)
        begun = self.work.stop.clock()
        steps = self._measured(recipe, remedy, baseline, key)
        found = yield from self.work.stage("search", f"Trying: {remedy.title}", steps)
        gain = None if best is None else best.drop - found.drop
        found = replace(found, seconds=round(self.work.stop.clock() - begun, 3), gain=gain)
        yield Notice(self._said(found))
        return found

    def _recipe(self, specs: Mapping[str, LayerSpec] | None) -> Recipe:
        recipe = self.work.recipe
        if specs is None:
            return recipe
        free = {row.path: specs[row.path] for row in self.plan.layers if _free(row)}
        return with_strategy(recipe, recipe.preset, [*recipe.layer_rules(), *search.rules_of(self.plan.layers, free)])

    def _measured(self, recipe: Recipe, remedy: _Remedy, baseline: Baseline, key: str) -> Generator[Event, None, Tried]:
        work, task = self.work, self.task
        directory = work.directory / TRIALS / key
        lowering = copy.copy(self.lowering)
        lowering.run = _Trial(work, recipe, directory)
        plan = yield from _progress(lowering.plan())
        plan = yield from _progress(lowering.settle(plan))
        statistics = yield from _progress(lowering.calibrate(plan))
        quantized = yield from _progress(lowering.convert(plan, statistics))
        forms = {"quantized": forward_of(quantized.model)}
        reference = self._reference = self._reference or Remembered(forward_of(baseline.reference))
        reference.rewind()
        steps = evaluate(
            task, forms, reference, "validation", batch=recipe.data.batch, stop=work.stop, stage="search"
        )  # fmt: skip
        results = yield from _progress(steps)
        value, before = results["quantized"].value, results["reference"].value
        latency_ms = latency = None
        if self._target("latency") is not None:
            first = task.workloads[0].key
            times = yield from _progress(
                ranks.by_first(task.time({**baseline.forms, "quantized": quantized.model}, work.stop, self.device))
            )
            latency_ms = times["quantized"].latencies[first].p50
            latency = latency_ms / min(times[name].latencies[first].p50 for name in baseline.forms)
        specs = plan.specs()
        drop, size = task.metric.drop(before, value), len(quantized.content)
        rules = tuple(part.model_dump(mode="json", exclude_none=True) for part in recipe.rules)
        harm = self._sensitivity.total(specs) if self._sensitivity else None
        found = Tried(
            remedy.title, key, recipe.preset, rules, value, drop, size, size / baseline.size_bytes, self._bits(specs), 0.0, False,
            None, latency_ms, latency, harm, repairs=remedy.repairs,
        )  # fmt: skip
        return replace(found, met=self._excess(found) == 0 and self._drop_met(found))

    # What came of it.

    def _excess(self, tried: Tried) -> float:
        """By how much a trial is over its limits, as parts of them."""
        found = 0.0
        for target in self._limits:
            found += max((self._have(tried, target) or 0.0) / target.value - 1.0 - _SLACK, 0.0)
        return found

    def _have(self, tried: Tried, target: Target) -> float | None:
        """What a trial has of a limit, in its unit."""
        return {
            "size": tried.size_bytes if target.unit else tried.size, "bpw": tried.bpw,
            "latency": tried.latency_ms if target.unit else tried.latency,
        }[target.kind]  # fmt: skip

    def _is_least(self, tried: Tried) -> bool:
        """Whether a trial loses no more than its target, and is over a limit that the plan of least size and time did not meet: what
        rounds better changes neither."""
        return self._target("drop") is not None and round(self._excess(tried), 2) > 0 and self._drop_met(tried)

    def over(self, tried: Tried) -> tuple[str, ...]:
        """The limits that a trial is over, with what it has: ``size:0.1 (it has 0.128)``."""
        found = []
        for target in self._limits:
            have = self._have(tried, target) or 0.0
            if have / target.value > 1.0 + _SLACK:
                told = f"{have / 1e6:.4g} MB" if target.unit == "B" else f"{have:.4g}{target.unit}"
                found.append(f"{target} (it has {told})")
        return tuple(found)

    def _drop_met(self, tried: Tried) -> bool:
        most = self.most_drop
        return most is None or tried.drop <= most + _SLACK

    def _rank(self, tried: Tried) -> tuple[float, float]:
        # A hundredth over a limit is the text of a file: it does not outweigh a drop.
        return round(self._excess(tried), 2), tried.drop

    def _best(self) -> Tried | None:
        met = [one for one in self.tried if one.met]
        return met[0] if met else min(self.tried, key=self._rank, default=None)

    def _said(self, tried: Tried) -> str:
        metric = self.task.metric
        parts = [f"{metric.titled(tried.value)} on validation, a drop of {tried.drop:.4f}", f"{tried.size:.3f} of fp32's size"]
        if self._target("bpw"):
            parts.append(f"{tried.bpw:.2f} bits per weight")
        if tried.latency is not None:
            parts.append(f"{tried.latency:.2f} of fp32's time")
        return f"{tried.title}: {', '.join(parts)}{'; all targets are met' if tried.met else ''}"

    def _table(self) -> Table:
        rows = tuple(
            (
                one.title, self.task.metric.shown(one.value), f"{one.drop:.4f}", "" if one.gain is None else f"{one.gain:+.4f}",
                f"{one.size:.3f}", f"{one.bpw:.2f}", f"{one.seconds:.1f}", "yes" if one.met else "no",
            )
            for one in self.tried
        )  # fmt: skip
        columns = ("tried", self.task.metric.name, "drop", "gain", "of fp32's size", "bits per weight", "seconds", "met")
        return Table("search", f"Search ─ {len(rows)} trials on validation", columns, rows)

    def entry(self) -> dict[str, Any]:
        """The report's ``search``."""
        return {
            "targets": [str(target) for target in self.targets], "metric": self.task.metric.name,
            "chosen": self.chosen.title if self.chosen else None, "met": bool(self.chosen and self.chosen.met),
            "tried": [{key: value for key, value in asdict(one).items() if key not in _UNTOLD} for one in self.tried],
            "skipped": self.skipped, "seconds": round(math.fsum(one.seconds for one in self.tried), 3), "front": list(self.front),
        }  # fmt: skip

    # State.

    def _write(self) -> None:
        content = {
            "identity": self._identity, "tried": [asdict(one) for one in self.tried], "skipped": self.skipped, "front": list(self.front),
            "chosen": self.chosen.key if self.chosen else None,
        }  # fmt: skip
        if ranks.is_first():
            save(self._path, (json.dumps(content) + "\n").encode())

    def _read(self) -> None:
        """What an interrupted search has tried; a file of another one, or that cannot be read, counts as none."""
        try:
            known = ranks.called_by_first(lambda: _read_or_none(self._path))
            if not isinstance(known, dict) or known.get("identity") != self._identity:
                return
            several = [Tried(**{**one, "rules": tuple(one["rules"]), "repairs": tuple(one.get("repairs", ()))}) for one in known["tried"]]
            for one in several:
                with_repairs(Recipe.make(model="any", preset=one.preset, rules=list(one.rules)), one.repairs)
                if not all(math.isfinite(x) for x in (one.value, one.drop, one.size, one.bpw, one.seconds)):
                    return
        except Cancelled:
            raise
        except Exception:
            return
        self._known = {one.key: one for one in several}
        self.chosen = self._known.get(str(known.get("chosen")))
        if self.chosen is not None:
            self.tried = several
            self.skipped, self.front = list(known.get("skipped") or []), tuple(known.get("front") or ())


def _progress(steps: Generator[Event, Any, Any]) -> Generator[Event, Any, Any]:
    """What ``steps`` return; of their events progress alone is passed on."""
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            return end.value
        if isinstance(event, Progress):
            yield event


def _free(row: LayerRow) -> bool:
    """Whether the search may change a layer: a rule of the recipe stands."""
    return row.editable and row.tied is None and not row.rule.startswith("rule ")


def _with_observer(specs: Mapping[str, LayerSpec], rows: Sequence[LayerRow], observer: Any) -> Mapping[str, LayerSpec] | None:
    found = dict(specs)
    for row in rows:
        spec = specs[row.path]
        if _free(row) and spec.weights is not None and spec.activations is not None and not spec.activations.dynamic:
            found[row.path] = replace(spec, activations=replace(spec.activations, observer=observer))
    return found if found != specs else None


def _read_or_none(path: Path) -> Any:
    try:
        return read_json(path, _LARGEST_STATE)
    except (OSError, ValueError):
        return None
