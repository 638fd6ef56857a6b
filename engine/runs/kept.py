"""What stages have found, kept in the run's folder until it is finished: a run that goes on does not do them again."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from engine.errors import EngineError
from engine.events.event import Changes as ChangesEvent
from engine.events.pictures import NAME as PICTURES
from engine.events.pictures import Picture, to_json
from engine.events.pictures import read as read_pictures
from engine.events.replay import from_dict
from engine.lowering.base import Quantized
from engine.machine import ranks
from engine.planning.plan import Plan
from engine.reading import MB, read_bytes
from engine.recipe.recipe import Recipe
from engine.report.advice import Harm
from engine.report.figures import BaselineFigures, QuantizedFigures
from engine.report.verdict import Quality
from engine.runs.measuring import Form, Measured
from engine.runs.rundir import CALIBRATION, MEASURED, RunDir
from engine.tasks.changes import Changes
from engine.tasks.metrics import MetricValue
from engine.training import checkpoint

# Of a recipe, what neither calibration nor measuring looks at.
_LATER = ("qat", "export", "threshold", "targets")
_LARGEST = 64 * MB
# What the calibration has gathered is kept up to this size: beyond, gathering it again costs less than writing it.
_MOST_BYTES = 256 * MB


class Kept:
    """Of one run: ``identity`` tells what was asked, of which model and with which plan; what belongs to another is passed over."""

    def __init__(self, where: RunDir, recipe: Recipe, plan: Plan, weights: str) -> None:
        self.where = where
        asked = {key: value for key, value in recipe.model_dump(mode="json").items() if key not in _LATER}
        specs = {path: str(spec) for path, spec in sorted(plan.specs().items())}
        told = json.dumps([asked, specs, weights, torch.__version__], sort_keys=True)
        self.identity = hashlib.sha256(told.encode()).hexdigest()[:16]

    def calibration(self) -> dict[str, Any] | None:
        """What the calibration had gathered, as the lowering told it; None where it is to be gathered."""
        if not self.where.resumed or ranks.several():
            # Other hosts may not see the folder, and all ranks take the same way.
            return None
        try:
            return checkpoint.read(self.where.path / CALIBRATION, self.identity)
        except EngineError:
            # It costs no more than a run that kept nothing.
            return None

    def keep_calibration(self, state: dict[str, Any] | None, seconds: float) -> None:
        """``state`` holds plain values and tensors alone."""
        if state is None or _bytes(state) > _MOST_BYTES:
            return
        buffer = io.BytesIO()
        torch.save({**state, "fingerprint": self.identity, "seconds": seconds}, buffer)
        self.where.write(CALIBRATION, buffer.getvalue())

    def measured(self, quantized: Quantized) -> tuple[Measured, dict[str, Any]] | None:
        """What was measured of ``quantized``, and what was told of its layers; None where it is to be measured."""
        if not self.where.resumed or ranks.several():
            # Other hosts may not see the folder, and all ranks take the same way.
            return None
        try:
            found = json.loads(read_bytes(self.where.path / MEASURED, _LARGEST))
            if found["identity"] != self.identity:
                return None
            return _measured(found, quantized, read_pictures(self.where.path)), dict(found.get("about") or {})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, EngineError):
            return None

    def keep_measured(self, found: Measured, about: Mapping[str, Any]) -> None:
        """``about`` is what was told of the layers: their rows, their harms, samples."""
        form = found.form
        if form.changes is not None and form.changes.pictures:
            self.where.write(PICTURES, to_json(form.changes.pictures))
        changes = None if form.changes is None else {**asdict(form.changes), "pictures": []}
        content = {
            "identity": self.identity, "figures": asdict(form.figures), "baseline": asdict(found.baseline),
            "quality": {split: asdict(quality) for split, quality in form.quality.items()}, "changes": changes, "about": dict(about),
        }  # fmt: skip
        self.where.write(MEASURED, json.dumps(content) + "\n")

    def forget(self) -> None:
        """A run that is finished does not go on."""
        for name in (CALIBRATION, MEASURED):
            (self.where.path / name).unlink(missing_ok=True)


def _measured(found: Mapping[str, Any], quantized: Quantized, pictures: tuple[Picture, ...]) -> Measured:
    """Raises KeyError, TypeError, ValueError or AttributeError for what is no such measurement."""
    figures = QuantizedFigures(**{**_form(found["figures"]), "size_bytes": len(quantized.content)})
    quality = {split: Quality(**{**told, "noun": _pair(told.get("noun"))}) for split, told in found["quality"].items()}
    changes = None
    if found["changes"] is not None:
        event = from_dict({**found["changes"], "event": "Changes", "which": "ptq"})
        if not isinstance(event, ChangesEvent):
            raise ValueError("changes")
        changes = Changes(event.items, event.changed, event.worse, event.better, event.rows, pictures)
    return Measured(Form(quantized, figures, quality, changes), BaselineFigures(**_form(found["baseline"])))


def _form(told: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {name: MetricValue(**value) for name, value in told["metrics"].items()}
    return {**told, "metrics": metrics, "latencies": tuple(told["latencies"])}


def _pair(noun: Any) -> tuple[str, str] | None:
    return None if noun is None else (str(noun[0]), str(noun[1]))


def harms_to_json(harms: Mapping[str, Harm] | None) -> dict[str, Any]:
    """What each layer costs, by path."""
    return {path: asdict(harm) for path, harm in (harms or {}).items()}


def harms_of(told: Mapping[str, Any]) -> dict[str, Harm]:
    """The inverse."""
    return {path: Harm(**harm) for path, harm in told.items()}


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0
