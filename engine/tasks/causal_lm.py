"""Causal language modelling: the next token of a text, judged by perplexity."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.data.text.batching import filled
from engine.data.text.encoded import SequenceData, TextData
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.models.transformers_load import LanguageModel
from engine.recipe.recipe import QatPart, Recipe
from engine.tasks import pooling
from engine.tasks.base import Batch, Split, Task
from engine.tasks.decode_timing import Lengths
from engine.tasks.metrics import DECODE, PERPLEXITY, PREFILL, MetricValue, Workload
from engine.tasks.perplexity import Part, Perplexity, parts_of, perplexity_of

# Windows of the validation split that decide; the test split is measured whole.
DECIDING = 16
# Tokens in a batch: their logits are to fit in memory beside the model.
TOKENS = 2048
# Tokens of a training step, about.
STEP_TOKENS = 1024
# Windows of test text that exported files are compared on.
COMPARED = 8
_ROWS = 256


@dataclass(frozen=True)
class Scored:
    """The targets of one window: its token ids (T,), of which those from ``first`` on are scored."""

    ids: Tensor
    first: int


class CausalLM(Task):
    """Token ids (1, T) to logits (1, T, vocabulary) of a transformers model, in windows of ``context`` tokens; the test split is read
    in steps of ``stride`` tokens."""

    name, item, unit, plural = "causal-lm", "token", "tok", "text"
    metrics = (PERPLEXITY,)
    workloads: tuple[Workload, ...] = (DECODE, PREFILL)
    distribution = divergence = stepwise = True
    # Tokens that are read and written where files are timed.
    lengths = Lengths()
    not_finite = "check the weights"

    def __init__(self, language: LanguageModel, text: TextData | SequenceData, context: int, stride: int, device: str = "cpu") -> None:
        self.language, self.text, self.context, self.device = language, text, context, device
        self.stride = None if isinstance(text, SequenceData) else min(stride, context)

    @property
    def windows_at_once(self) -> int:
        """Windows that are read at a time."""
        return max(TOKENS // self.context, 1)

    def calibration_windows(self, count: int, seed: int) -> list[Tensor]:
        """Windows of the training split, 1-D each: ``count`` of them, fewer where there are no more."""
        if isinstance(self.text, SequenceData):
            return [ids.to(self.device) for ids in self.text.sequences["train"][:count] if len(ids) > 1]
        return [ids.to(self.device) for ids in self.text.windows("train", self.context, count, seed)]

    def parts(self, split: Split, limit: int | None = None) -> list[Part]:
        """What of a split is scored, and from where: of validation windows that do not overlap, ``DECIDING`` of them; ``limit`` is in
        tokens. Raises EngineError for a text that is too short."""
        deciding = DECIDING if split == "validation" else None
        if isinstance(self.text, SequenceData):
            found = [(ids.to(self.device), 1) for ids in self.text.sequences[split] if len(ids) > 1]
            return found[: deciding if limit is None else max(limit // self.context, 1)]
        stride = self.context if split == "validation" or self.stride is None else self.stride
        return parts_of(self.text.streams[split][:limit].to(self.device), self.context, stride)[:deciding]

    def batches(
        self, split: Split, *, batch: int, limit: int | None = None, seed: int | None = None, device: str = "cpu"
    ) -> Iterator[Batch]:
        """Windows one by one where they are scored. Of the training split ``batch`` windows at a time, ``limit`` of them; the targets are
        the ids, with -100 where shorter ones are filled up."""
        if split != "train":
            for ids, first in self.parts(split, limit):
                yield Batch((), {"input_ids": ids[None], "use_cache": False}, Scored(ids, first), len(ids) - first)
            return
        windows = self.calibration_windows(limit or 2**31, 0 if seed is None else seed)
        for start in range(0, len(windows), batch):
            ids, keep = filled(windows[start : start + batch])
            yield Batch((), {"input_ids": ids, "use_cache": False}, ids.masked_fill(~keep, -100), int(keep.sum()))

    def count(self, split: Split, limit: int | None = None) -> int:
        if split == "train":
            return len(self.calibration_windows(limit or 2**31, 0))
        return sum(len(ids) - first for ids, first in self.parts(split, limit))

    def compared(self, *, batch: int, limit: int | None = None) -> Iterator[Batch]:
        """The first windows, all of their tokens. Raises EngineError where there is nothing to read."""
        windows = [ids.cpu() for ids, _ in self.parts("test")[:COMPARED]]
        if not windows:
            raise EngineError("there is no text of two tokens or more to compare on")
        for ids in windows:
            yield Batch((), {"input_ids": ids[None], "use_cache": False}, Scored(ids, 1), len(ids))

    def compared_count(self, limit: int | None = None) -> int:
        return sum(len(ids) for ids, _ in self.parts("test")[:COMPARED])

    def outputs(self, raw: Any) -> tuple[Tensor, ...]:
        return (raw.logits,)

    def scored(self, outputs: tuple[Tensor, ...], targets: Any) -> tuple[Tensor, ...]:
        return (outputs[0][0, targets.first - 1 : -1],)

    def answers(self, outputs: tuple[Tensor, ...]) -> Tensor | None:
        return outputs[0].argmax(-1)

    def evaluator(self) -> PerplexityEvaluator:
        return PerplexityEvaluator(self.stride)

    def loss(self, raw: Any, targets: Any) -> Tensor | None:
        return F.cross_entropy(raw.logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten(), ignore_index=-100)

    def data(self, calibration: int, limit: int | None) -> dict[str, Any]:
        windows = self.calibration_windows(calibration, 0)
        return {
            "name": self.text.name, "calibration": len(windows), "calibration_tokens": sum(len(ids) for ids in windows),
            **tokens(self.text), "unit": "tokens", "context": self.context, "stride": self.stride,
        }  # fmt: skip

    def time(self, models: Mapping[str, Any], stop: StopToken, device: str = "cpu") -> Generator[Event, None, dict[str, Any]]:
        from engine.tasks.forms_timing import timings

        return (yield from timings(models, self.language.context, device, stop))

    def time_steps(self, steps: Mapping[str, Any], stop: StopToken) -> Generator[Event, None, dict[str, Any]]:
        """Tokens a second as well, with the lengths that they were measured at, as ``latency``."""
        from engine.tasks.forms_timing import step_timings

        vocabulary = int(self.language.model.get_input_embeddings().weight.shape[0])
        return (yield from step_timings(steps, vocabulary, self.lengths.within(self.language.context), stop))

    def settled(self, recipe: Recipe) -> Recipe:
        """With the windows that a training step reads: about a thousand tokens where nothing was said."""
        if "batch" in recipe.qat.model_fields_set:
            return recipe
        batch = max(STEP_TOKENS // self.context, 1)
        return recipe.model_copy(update={"qat": QatPart.model_validate({**recipe.qat.model_dump(), "batch": batch})})

    def describe(self, models: Mapping[str, Any], stop: StopToken) -> Generator[Event, None, list[dict[str, Any]]]:
        """The same words continued by each model, as ``Samples`` too."""
        from engine.tasks.samples import sampled

        found = sampled(self, models, stop)
        yield from found
        return [{"prompt": sample.prompt, **sample.texts} for sample in found]


class PerplexityEvaluator:
    """The negative log-likelihood of each window, and the perplexity that follows from all of them."""

    pooled: ClassVar[Mapping[str, pooling.How]] = {"_sums": "sum", "_scored": "sum", "_context": "max"}

    def __init__(self, stride: int | None) -> None:
        self._stride = stride
        self._sums: list[tuple[float, int]] = []
        self._scored: list[Tensor] = []
        self._context = 0

    def update(self, raw: Any, targets: Scored) -> None:
        """Raises EngineError for logits that are not finite."""
        logits, wanted = raw.logits[0, targets.first - 1 : -1], targets.ids[targets.first :]
        nll = 0.0
        for rows, ids in zip(torch.split(logits, _ROWS), torch.split(wanted, _ROWS), strict=True):
            nll -= rows.float().log_softmax(-1).gather(1, ids[:, None]).double().sum().item()
        if not math.isfinite(nll):
            raise EngineError("the model's output on the text is NaN or infinite: check the weights")
        self._sums.append((nll, len(wanted)))
        self._scored.append(wanted)
        self._context = max(self._context, len(targets.ids))

    @property
    def perplexity(self) -> Perplexity:
        return perplexity_of(self._sums, self._context, self._stride)

    def compute(self) -> Mapping[str, MetricValue]:
        found = self.perplexity
        return {"perplexity": MetricValue(found.value, found.low, found.high)}

    def details(self) -> dict[str, Any]:
        """The protocol beside the figure."""
        found = self.perplexity
        keys = ("protocol", "context", "stride", "tokens", "windows", "nll", "low", "high")
        return {"perplexity": {key: getattr(found, key) for key in keys}}

    def samples(self) -> int:
        return len(self._sums)

    def difference_error(self, reference: PerplexityEvaluator) -> float | None:
        """The standard error of the mean difference of both losses over the windows, nats a token; None for a single window: both
        read the same text."""
        pairs = zip(reference._sums, self._sums, strict=True)
        return perplexity_of([(after - before, count) for (before, count), (after, _) in pairs], 1, None).error

    def chance(self) -> float:
        """The perplexity of a form that knows nothing but how often each token is scored. Frequencies that are taken from the text
        itself flatter it: the bias of the entropy is put right to first order (Miller 1955)."""
        counts = torch.bincount(torch.cat(self._scored)).double()
        counts = counts[counts > 0]
        total = counts.sum()
        entropy = -(counts / total * (counts / total).log()).sum() + (len(counts) - 1) / (2 * total)
        return math.exp(float(entropy))


def tokens(text: TextData | SequenceData) -> dict[str, int]:
    """Tokens of each split."""
    splits: tuple[Split, ...] = ("train", "validation", "test")
    if isinstance(text, SequenceData):
        return {split: sum(len(ids) for ids in text.sequences[split]) for split in splits}
    return {split: len(text.streams[split]) for split in splits}
