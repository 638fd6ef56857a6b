"""Fidelity: a model judged against fp32 alone, on inputs without labels, by the signal-to-quantization-noise ratio."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine.data.items import ItemData, SomeItems, kind_of
from engine.errors import EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice
from engine.models.widened import tried_in_float32
from engine.numerics.sqnr import sqnr_db
from engine.plain_text import one_line
from engine.recipe.recipe import Recipe
from engine.tasks import items, pooling
from engine.tasks.base import Batch
from engine.tasks.intervals import bootstrap
from engine.tasks.metrics import AGREEMENT, LARGEST_ERROR, SQNR, Metric, MetricValue, batched
from engine.tasks.outputs import normalized
from engine.tasks.subject import Subject

# Errors of a hundredth of the outputs' energy: what 8 bits keep of most networks, and training is not begun for less.
DEFAULT_THRESHOLD = "sqnr:20"
# Items of the larger timed batch, where the data have as many of one size.
_BATCHED = 64


class Fidelity(items.ItemTask):
    """Any inputs to any outputs with a tensor of floats, held against what fp32 gives."""

    name, item, unit, plural = "fidelity", "input", "inputs", "inputs"
    judged_by_fp32: ClassVar[bool] = True

    def __init__(self, data: ItemData) -> None:
        super().__init__(data)
        self.metrics = metrics_of(False)

    def outputs(self, raw: Any) -> tuple[Tensor, ...]:
        return super().outputs(normalized(raw))

    def held_against(self, reference: Any, targets: Any) -> Any:
        return reference

    def answers(self, outputs: tuple[Tensor, ...]) -> Tensor | None:
        return largest(outputs)

    def evaluator(self) -> Distances:
        return Distances()

    def compared(self, *, batch: int, limit: int | None = None) -> Iterator[Batch]:
        """The test items of the size that files are written for, that of the first training item; without any, the training items."""
        for found, count in self._comparable.batches("test", batch, limit=limit):
            yield items.batch_of(found, count)

    def compared_count(self, limit: int | None = None) -> int:
        return self._comparable.count("test", limit)

    @property
    def _comparable(self) -> ItemData:
        """The data with such items for test."""
        data, wanted = self.items, kind_of(self.items.train, 0)
        if wanted is None:
            return data
        for split in (data.test, data.train):
            places = tuple(i for i in range(len(split)) if kind_of(split, i) == wanted)
            if places:
                return replace(data, test=SomeItems(split, places))
        return data

    def tried_on(self, model: nn.Module, name: str) -> Batch:
        """The first training batch, once ``model`` has taken it; the metrics and the timed batches are then those of the model and the
        data. Raises EngineError in one line for inputs that it does not take."""
        example = items.tried(model, self, name)
        with torch.no_grad():
            found = self.outputs(model(*example.args, **example.kwargs))
        self.metrics = metrics_of(largest(found) is not None)
        count = next(iter(self.batches("test", batch=_BATCHED, limit=_BATCHED))).count
        self.workloads = (batched(1), batched(count)) if count > 1 else (batched(1),)
        return example


def metrics_of(answers: bool) -> tuple[Metric, ...]:
    """The metrics of a model, with the part of equal answers where it ``answers``."""
    return (SQNR, LARGEST_ERROR, *((AGREEMENT,) if answers else ()))


def largest(outputs: Sequence[Tensor]) -> Tensor | None:
    """The place of the largest number of each row of a first output (N, two or more); None for any other."""
    first = outputs[0]
    return first.argmax(1) if first.dim() == 2 and first.shape[1] > 1 else None


class Distances:
    """The distance of outputs from fp32's, item by item where all outputs count the items, else batch by batch.

    Of several outputs the SQNR is of all their numbers together, and each one's own is told as ``SQNR of boxes``."""

    pooled: ClassVar[Mapping[str, pooling.How]] = {"_rows": "sum", "_alike": "sum", "_worst": "max", "_known": "min", "_names": "first"}

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._worst = 0.0
        self._alike: list[Tensor] = []
        self._known = True
        self._names: list[str] = []

    def update(self, raw: Any, reference: Any) -> None:
        """Raises EngineError for outputs of another form than ``reference``, fp32's raw outputs; without them nothing is known."""
        if reference is None:
            self._known = False
            return
        found, wanted = _floats(raw), _floats(reference)
        if [x.shape for x in found] != [x.shape for x in wanted]:
            shapes = (", ".join(str(tuple(x.shape)) for x in tensors) for tensors in (found, wanted))
            raise EngineError(
                "the quantized model gives {} where fp32 gives {}: fidelity compares outputs of a fixed form, give the outputs before "
                "those that are counted or chosen by their values".format(*shapes)
            )
        self._names = self._names or _names(reference)
        count = _count(wanted)
        columns = []
        for got, exact in zip(found, wanted, strict=True):
            error = (got.to(exact.device) - exact).double()
            self._worst = max(self._worst, error.abs().max().item() if error.numel() else 0.0)
            columns += [_energy(exact.double(), count), _energy(error, count)]
        self._rows.append(torch.stack(columns, 1).cpu())
        answers = largest(found), largest(wanted)
        if answers[0] is not None and answers[1] is not None:
            self._alike.append((answers[0].to(answers[1].device) == answers[1]).double().cpu()[:, None])

    @property
    def _energies(self) -> Tensor:
        return torch.cat(self._rows)

    def compute(self) -> Mapping[str, MetricValue]:
        if not self._rows or not self._known:
            return {SQNR.name: MetricValue(math.nan), LARGEST_ERROR.name: MetricValue(math.nan)}
        rows = self._energies
        found = {SQNR.name: bootstrap(rows, _sqnr), LARGEST_ERROR.name: MetricValue(self._worst)}
        if self._alike:
            found[AGREEMENT.name] = bootstrap(torch.cat(self._alike), lambda sums: sums[:, 0] / sum(map(len, self._alike)))
        if rows.shape[1] > 2:
            sums = rows.sum(0).tolist()
            pairs = zip(self._names, sums[::2], sums[1::2], strict=True)
            found |= {f"{SQNR.name} of {name}": MetricValue(sqnr_db(signal, noise)) for name, signal, noise in pairs}
        return found

    def samples(self) -> int:
        return sum(map(len, self._rows))


def _floats(raw: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(normalized(raw))
    return [x.detach() for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]


def _names(raw: Any) -> list[str]:
    """What outputs are called by their place: ``boxes``, ``output 2``, ``aux.1``."""
    leaves, _ = torch.utils._pytree.tree_flatten_with_path(normalized(raw))
    paths = [[str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path] for path, x in leaves
             if isinstance(x, Tensor) and x.is_floating_point()]  # fmt: skip
    names = [".".join(path) for path in paths]
    return [f"output {int(name) + 1}" if name.isdigit() else one_line(name, 40) or "output" for name in names]


def _count(outputs: Sequence[Tensor]) -> int | None:
    """How many items the outputs count, where all count the same."""
    sizes = {len(x) if x.dim() else None for x in outputs}
    return next(iter(sizes)) if len(sizes) == 1 else None


def _energy(x: Tensor, count: int | None) -> Tensor:
    """The sum of squares of each of ``count`` items, or of all."""
    return x.square().flatten(1).sum(1) if count and x.dim() > 1 else x.square() if count else x.square().sum()[None]


def _sqnr(sums: Tensor) -> Tensor:
    """10 log10 of the outputs' energy over that of their errors, all outputs together."""
    return 10 * torch.log10(sums[:, ::2].sum(1) / sums[:, 1::2].sum(1))


def settled(recipe: Recipe) -> Recipe:
    """With a threshold on the SQNR where none was asked for. Raises UsageError for one on labels, and where no data are named."""
    if "name" not in recipe.data.model_fields_set:
        raise UsageError(
            "fidelity needs inputs: give --data with a file of arrays (.npz, .npy, .pt, .safetensors), a folder of images, of audio or of "
            "such files, the name of a data set, or random:SHAPE such as random:3x224x224"
        )
    return with_threshold(recipe)


def with_threshold(recipe: Recipe) -> Recipe:
    """With ``DEFAULT_THRESHOLD`` where none was asked for. Raises UsageError for a threshold on a metric of labels."""
    if not recipe.threshold.startswith("drop:"):
        return recipe
    if "threshold" in recipe.model_fields_set:
        raise UsageError(
            f"threshold {recipe.threshold} is of a metric on labels, and fidelity has none: give sqnr:30 (dB), agreement:0.99 or mse:1e-4"
        )
    return recipe.model_copy(update={"threshold": DEFAULT_THRESHOLD})


def load(recipe: Recipe, stop: StopToken, device: str) -> Generator[Event, None, Subject]:
    """The model and the inputs that ``recipe`` names. Raises UsageError or EngineError in one line for what does not fit."""
    from engine.data import unlabelled
    from engine.tasks import fidelity_models

    torch.manual_seed(recipe.seed)
    forms = unlabelled.forms(recipe.data, fidelity_models.transform_of(recipe.model))
    model, weights = fidelity_models.build(recipe, forms[0])
    model.eval().requires_grad_(False)
    task, said = tried_in_float32(model, lambda _: fitting(model, forms, recipe.model))
    if said:
        yield Notice(f"{recipe.model}: {said}")
    if recipe.threshold.startswith("agreement:") and AGREEMENT not in task.metrics:
        raise UsageError(
            f"threshold {recipe.threshold} needs one answer an input, and {recipe.model} does not give (N, classes) first: give sqnr:30"
        )
    return (yield from items.subject_of(model, task, recipe.model, weights, device))


def fitting(model: nn.Module, forms: Sequence[ItemData], name: str) -> Fidelity:
    """The task on the first of ``forms``, ways to read the same inputs, that ``model`` takes. Raises EngineError of the first form
    where it takes none."""
    first: EngineError | None = None
    for form in forms:
        task = Fidelity(form)
        try:
            task.tried_on(model, name)
        except EngineError as error:
            first = first or error
            continue
        return task
    assert first is not None
    raise first
