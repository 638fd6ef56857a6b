"""A person's own metrics over a split: their values, their intervals, and which way they are better."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from engine import user_code
from engine.errors import EngineError
from engine.tasks import pooling
from engine.tasks.metrics import Metric, MetricValue
from engine.tasks.outputs import normalized

_LOWER_IS_BETTER = ("loss", "error", "mae", "mse", "rmse", "perplexity", "distance")
_RESAMPLES, _LEAST_SAMPLES = 200, 8
# Numbers of outputs and targets that are kept for an object: 64 MB.
_KEPT = 1 << 24
# Seconds in which an object has to be done with a split, to be asked hundreds of times.
_QUICK = 0.05


class OwnEvaluator:
    """A person's metrics over one split: functions of all outputs and targets, or objects with ``update`` and ``compute``."""

    def __init__(self, metrics: Mapping[str, Any]) -> None:
        self._functions = {name: metric for name, metric in metrics.items() if not is_object(metric)}
        self._objects = {name: copy.deepcopy(metric) for name, metric in metrics.items() if is_object(metric)}
        for metric in self._objects.values():
            metric.reset()
        self._outputs: list[Any] = []
        self._targets: list[Any] = []
        # Of an object, what it was given is kept while that is little: its items can then be drawn anew.
        self._kept = 0
        # A person's object says nothing of how two of it become one.
        self.pooled: Mapping[str, pooling.How] = {} if self._objects else {"_outputs": "sum", "_targets": "sum"}

    def update(self, raw: Any, targets: Any) -> None:
        raw = normalized(raw)
        if self._objects and self._kept <= _KEPT:
            self._kept += sum(x.numel() for x in tree_leaves((raw, targets)) if isinstance(x, Tensor))
        if self._functions or self._kept <= _KEPT:
            self._outputs.append(tree_map(_detached, raw))
            self._targets.append(tree_map(_detached, targets))
        for name, metric in self._objects.items():
            user_code.called(f"metric {name}", metric.update, raw, targets)

    def compute(self, intervals: bool = True) -> dict[str, MetricValue]:
        """Raises EngineError for a metric that returns no number."""
        found: dict[str, MetricValue] = {}
        for name, metric in self._objects.items():
            value = user_code.called(f"metric {name}", metric.compute)
            values = value if isinstance(value, Mapping) else {name: value}
            for key, one in values.items():
                again = self._again(metric, str(key)) if intervals else None
                low, high = (None, None) if again is None else _bootstrap(again, *self._everything())
                found[str(key)] = MetricValue(_number(str(key), one), low, high)
        if self._functions:
            outputs, targets = _joined(self._outputs), _joined(self._targets)
            for name, function in self._functions.items():
                value = _number(name, user_code.called(f"metric {name}", function, outputs, targets))
                low, high = _bootstrap(function, outputs, targets) if intervals else (None, None)
                found[name] = MetricValue(value, low, high)
        return found

    def chance(self) -> float | None:
        """The deciding metric of an answer that looks at nothing: the frequencies of the classes, or the mean of the targets. None for
        an object, and for outputs and targets of another form."""
        name = self._first
        if name is None:
            return None
        outputs, targets = _joined(self._outputs), _joined(self._targets)
        blind = _blind(outputs, targets)
        if blind is None:
            return None
        try:
            value = float(self._functions[name](blind, targets))
        except Exception:
            # A person's metric may want more of outputs than this knows.
            return None
        return value if math.isfinite(value) else None

    def difference_error(self, reference: OwnEvaluator) -> float | None:
        """The standard error of the deciding metric's difference from ``reference`` on the same items: of the paired bootstrap, and no
        less than what one item more would change, so that no difference on a few items is no proof of none. None where items cannot be
        resampled."""
        function, beside = self._deciding(), reference._deciding()
        if function is None or beside is None:
            return None
        targets = _joined(self._targets)
        mine, other = (_resamples(function, _joined(form._outputs), targets) for form in (self, reference))
        if not mine or not other:
            return None
        differences = [a - b for a, b in zip(mine, other, strict=True) if math.isfinite(a - b)]
        if len(differences) < 2:
            return None
        value, chance = float(beside(_joined(reference._outputs), targets)), reference.chance()
        one = abs(value - (chance or 0.0)) / (_count_of(targets) + 2)
        return max(statistics.stdev(differences), one)

    def _everything(self) -> tuple[Any, Any]:
        """Outputs and targets of the whole split."""
        return _joined(self._outputs), _joined(self._targets)

    def _again(self, metric: Any, key: str) -> Callable[[Any, Any], Any] | None:
        """An object as a function of a whole split, by the name ``key`` of its value; None where too much was given to it, or where it
        takes long."""
        if self._kept > _KEPT or not self._outputs:
            return None

        def value(outputs: Any, targets: Any) -> Any:
            one = copy.deepcopy(metric)
            one.reset()
            one.update(outputs, targets)
            found = one.compute()
            return found[key] if isinstance(found, Mapping) else found

        start = time.perf_counter()
        user_code.called(f"metric {key}", value, *self._everything())
        return value if time.perf_counter() - start < _QUICK else None

    def _deciding(self) -> Callable[[Any, Any], Any] | None:
        """The metric that decides, as a function of a whole split."""
        if not self._objects:
            return self._functions[self._first] if self._first is not None else None
        name, metric = next(iter(self._objects.items()))
        found = user_code.called(f"metric {name}", metric.compute)
        return self._again(metric, str(next(iter(found))) if isinstance(found, Mapping) else name)

    @property
    def _first(self) -> str | None:
        """The function that decides; None where an object does."""
        return None if self._objects else next(iter(self._functions), None)


def _joined(parts: list[Any]) -> Any:
    """The batches as one: tensors along their first dimension, lists one after the other."""
    if isinstance(parts[0], list):
        return [item for part in parts for item in part]
    flat = [tree_flatten(part) for part in parts]
    leaves = [
        torch.cat(column) if isinstance(column[0], Tensor) and column[0].dim() else column[0]
        for column in (list(some) for some in zip(*(leaves for leaves, _ in flat), strict=True))
    ]
    return tree_unflatten(leaves, flat[0][1])


def _detached(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or (not isinstance(value, int | float) and not hasattr(value, "__float__")):
        raise EngineError(f"metric {name} returned {type(value).__name__}: it must return one number")
    if (size := getattr(value, "size", 1)) != 1 and not isinstance(value, int | float):
        shape = tuple(value.shape) if hasattr(value, "shape") else size
        raise EngineError(f"metric {name} returned a {type(value).__name__} of shape {shape}: it must return one number")
    number = float(value)
    if math.isnan(number):
        raise EngineError(f"metric {name} is not a number (NaN): check the outputs and the targets that it is given")
    return number


def _bootstrap(function: Callable[[Any, Any], Any], outputs: Any, targets: Any) -> tuple[float | None, float | None]:
    """The 95 % percentile interval of ``function`` over resampled items (Efron 1979); None where the items cannot be resampled."""
    values = sorted(_resamples(function, outputs, targets))
    if not values:
        return None, None
    return values[int(0.025 * len(values))], values[min(int(0.975 * len(values)), len(values) - 1)]


def _resamples(function: Callable[[Any, Any], Any], outputs: Any, targets: Any) -> list[float]:
    """``function`` of items drawn with replacement, by a fixed seed: the same draws for every form of a model. Empty where the items
    cannot be resampled."""
    listed: list[Any] = [part for part in (outputs, targets) if isinstance(part, list)]
    leaves = [
        x for part in (outputs, targets) if not isinstance(part, list) for x in tree_leaves(part) if isinstance(x, Tensor) and x.dim()
    ]
    count = len(next(iter((*leaves, *listed)), ()))
    if count < _LEAST_SAMPLES or any(len(x) != count for x in (*leaves, *listed)):
        return []
    draw = torch.Generator().manual_seed(0)
    values = []
    for _ in range(_RESAMPLES):
        places = torch.randint(count, (count,), generator=draw)
        some, wanted = (_resampled(part, places) for part in (outputs, targets))
        try:
            values.append(float(function(some, wanted)))
        except Exception:
            return []
    return values


def _resampled(part: Any, places: Tensor) -> Any:
    if isinstance(part, list):
        return [part[place] for place in places.tolist()]
    return tree_map(lambda x: x[places] if isinstance(x, Tensor) and x.dim() else x, part)


def _count_of(targets: Any) -> int:
    if isinstance(targets, list):
        return len(targets)
    return next((len(x) for x in tree_leaves(targets) if isinstance(x, Tensor) and x.dim()), 0)


def _blind(outputs: Any, targets: Any) -> Tensor | None:
    """Outputs that are the same for every item and fit ``targets`` best: logits of the classes' frequencies for whole numbers, the mean
    for others; None where the two are no tensors of such forms."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or not outputs.is_floating_point():
        return None
    if not targets.is_floating_point() and outputs.dim() == targets.dim() + 1 and outputs.shape[:1] + outputs.shape[2:] == targets.shape:
        known = targets[(targets >= 0) & (targets < outputs.shape[1])].long()
        if not known.numel():
            return None
        parts = torch.bincount(known.flatten(), minlength=outputs.shape[1]).double() / known.numel()
        logits = parts.clamp(min=1e-9).log().to(outputs.dtype)
        return logits.reshape(1, -1, *[1] * (outputs.dim() - 2)).expand_as(outputs).clone()
    if outputs.shape != targets.shape:
        return None
    mean = targets.double().mean(0, keepdim=True)
    if bool(((targets == 0) | (targets == 1)).all()):
        mean = torch.logit(mean, eps=1e-9)
    return mean.to(outputs.dtype).expand_as(outputs).clone()


def is_object(metric: Any) -> bool:
    return all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset"))


def name_of(metric: Any) -> str:
    name = getattr(metric, "__name__", type(metric).__name__)
    return "metric" if name == "<lambda>" else str(name)


def metric_of(name: str, function: Any, options: Mapping[str, Any]) -> Metric:
    given = options.get("higher_is_better")
    known = getattr(function, "higher_is_better", None)
    higher = given if given is not None else known if known is not None else not _sounds_lower(name)
    return Metric(name, str(options.get("unit") or ""), bool(higher))


def _sounds_lower(name: str) -> bool:
    return any(word in name.lower() for word in _LOWER_IS_BETTER)


def directions(metrics: Mapping[str, Any]) -> list[str]:
    lower = [name for name, one in metrics.items() if getattr(one, "higher_is_better", None) is None and _sounds_lower(name)]
    return [f"of {' and '.join(lower)} less is taken to be better, by its name: higher_is_better= says otherwise"] if lower else []
