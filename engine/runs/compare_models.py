"""What one language model costs against another on the same tokens: a shipped file against the model that it was made of."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.data.text.encoded import SequenceData, load_text
from engine.errors import EngineError, UsageError
from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice
from engine.models.transformers_load import LanguageModel, load_language

# A two-sided 95 % interval of a mean of many windows.
_NORMAL = 1.96
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Comparison:
    """``perplexities`` are exp of the mean negative log-likelihoods of ``tokens`` tokens in ``windows`` windows that do not overlap,
    the original's first; ``rise`` is the other's part above it, ``low`` to ``high`` its 95 % interval over the windows, whose
    differences are taken pair by pair (None for one window). ``divergence`` is the mean Kullback-Leibler divergence of the next token's
    distribution from the original's, in nats, ``agreement`` the part of tokens with the same most likely next one. ``bytes`` are those
    of the weights' files."""

    names: tuple[str, str]
    perplexities: tuple[float, float]
    rise: float
    low: float | None
    high: float | None
    divergence: float
    agreement: float
    bytes: tuple[int, int]
    tokens: int
    windows: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(original: str, other: str, data: str, limit: int | None, stop: StopToken) -> Generator[Event, None, Comparison]:
    """Compare two models by name, folder or file on the test split of ``data``, at most ``limit`` tokens of it. Raises UsageError and
    EngineError in one line for a model or text that cannot be read, and for models that do not read a text as the same tokens."""
    if limit is not None and limit < 2:
        raise UsageError(f"a limit of {limit} tokens has no next token to tell: give 2 or more")
    text = not data.lower().endswith(".json")
    yield Notice(f"loading {original} and {other}")
    one, two = load_language(original, text=text), load_language(other, text=text)
    for note in (*one.notes, *two.notes):
        yield Notice(note, "warning")
    window = min(one.window, two.window)
    parts = _parts(one, two, data, window, limit, stop)
    yield Notice(f"{data}: {sum(len(ids) for ids in parts):,} tokens of the test split in windows of {window:,} at most")
    losses, divergence, same, count = [], 0.0, 0, 0
    for ids in parts:
        stop.check()
        with torch.inference_mode():
            wanted, found = (_told(model, ids) for model in (one, two))
        target = ids[1:, None]
        losses.append([-float(told.gather(1, target).double().sum()) for told in (wanted, found)] + [float(len(target))])
        divergence += float((wanted.exp() * (wanted - found)).double().sum())
        same += int((wanted.argmax(1) == found.argmax(1)).sum())
        count += len(target)
    rows = torch.tensor(losses, dtype=torch.float64)
    means = rows.sum(0)[:2] / count
    if not torch.isfinite(means).all():
        raise EngineError(f"{other if math.isfinite(means[0]) else original} gives NaN or infinity on {data}: use another checkpoint")
    change, error = float(means[1] - means[0]), _error(rows)
    low, high = (None, None) if error is None else (math.expm1(change - _NORMAL * error), math.expm1(change + _NORMAL * error))
    return Comparison(
        (original, other), (math.exp(means[0]), math.exp(means[1])), math.expm1(change), low, high, divergence / count, same / count,
        (_bytes(one, original), _bytes(two, other)), count, len(parts),
    )  # fmt: skip


def _parts(one: LanguageModel, two: LanguageModel, data: str, window: int, limit: int | None, stop: StopToken) -> list[Tensor]:
    """Token ids of the test split, each (T,) with two tokens or more."""
    found = [load_text(data, model, stop, window) for model in (one, two)]
    rows = [int(model.model.get_input_embeddings().weight.shape[0]) for model in (one, two)]
    first, second = found
    if isinstance(first, SequenceData) or isinstance(second, SequenceData):
        assert isinstance(first, SequenceData)
        whole = list(first.sequences["test"])
    else:
        stream = first.streams["test"]
        if not torch.equal(stream, second.streams["test"]):
            raise UsageError(f"{one.name} and {two.name} read {data} as other tokens: perplexities of different tokenizers say nothing")
        whole = [*torch.split(stream[:limit], window)]
    parts = [ids[:window] for ids in whole if len(ids) > 1]
    if not parts or max(int(ids.max()) for ids in parts) >= min(rows):
        raise UsageError(f"{data} has no tokens that both {one.name} and {two.name} know: give their own text")
    return parts


def _told(language: LanguageModel, ids: Tensor) -> Tensor:
    """Log-probabilities (tokens, vocabulary) of the token after each but the last."""
    return language.logits(ids[None])[0, :-1].float().log_softmax(-1)


def _error(rows: Tensor) -> float | None:
    """The standard error of the mean difference, each window counting by its tokens."""
    if len(rows) < 2:
        return None
    share = rows[:, 2] / rows[:, 2].sum()
    change = (rows[:, 1] - rows[:, 0]) / rows[:, 2]
    spread = (share * (change - (share * change).sum())).square().sum()
    return float((spread * len(rows) / (len(rows) - 1)).sqrt())


def _bytes(language: LanguageModel, name: str) -> int:
    if language.source == "GGUF file":
        return Path(name).expanduser().stat().st_size
    return sum(path.stat().st_size for pattern in _WEIGHTS for path in language.path.glob(pattern))
