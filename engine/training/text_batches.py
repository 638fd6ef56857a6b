"""What a decoder is fine-tuned on and judged by: windows of text or sequences of token ids."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor

from engine.data.text.batching import filled
from engine.data.text.encoded import SequenceData, TextData
from engine.events.event import Event
from engine.tasks.perplexity import Logits, Perplexity, sequence_perplexity, stream_perplexity
from engine.training.trainable import Judge, Judged, TrainingContext, cut


def batches(data: TextData | SequenceData, context: int, windows: int, tokens: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids (N, T) and where they are no filling, bool (N, T), about ``tokens`` of them at a time, the same for the same ``seed``.

    Of text ``windows`` windows of ``context`` tokens that do not overlap, of sequences as many in a new order; fewer where there
    are no more. Sequences of like length go together, filled up on the right.
    """
    if isinstance(data, TextData):
        found = data.windows("train", context, windows, seed)
        for ids in torch.split(found, max(tokens // context, 1)) if len(found) else ():
            yield ids, torch.ones_like(ids, dtype=torch.bool)
        return
    draw = torch.Generator().manual_seed(seed)
    sequences = data.sequences["train"]
    some = sorted((sequences[i] for i in torch.randperm(len(sequences), generator=draw)[:windows].tolist()), key=len)
    groups: list[list[Tensor]] = [[]]
    for ids in some:
        if groups[-1] and (len(groups[-1]) + 1) * len(ids) > tokens:
            groups.append([])
        groups[-1].append(ids)
    for at in torch.randperm(len(groups), generator=draw).tolist():
        yield filled(groups[at])


def shared_rows(ids: Tensor, keep: Tensor, index: int, count: int) -> tuple[tuple[Tensor, Tensor], float]:
    """The sequences of a batch that rank ``index`` of ``count`` trains on, and the part of the tokens that are scored which they have."""
    places = cut(len(ids), index, count)
    if len(places) == len(ids):
        return (ids, keep), 1 / count
    rows = slice(places.start, places.stop)
    scored = keep[:, 1:].sum()
    return (ids[rows], keep[rows]), float(keep[rows, 1:].sum() / scored.clamp_min(1))


def steps(data: TextData | SequenceData, context: int, windows: int, tokens: int, seed: int) -> int:
    """How many batches there are."""
    return sum(1 for _ in batches(data, context, windows, tokens, seed))


def perplexity(
    data: TextData | SequenceData, logits: Logits, length: int, limit: int | None, context: TrainingContext
) -> Generator[Event, None, Perplexity]:
    """On the validation split: in windows of ``length`` tokens that do not overlap, the first ``limit`` tokens, or of all sequences."""
    stop, device = context.stop, context.device
    if isinstance(data, TextData):
        stream = data.streams["validation"]
        return stream_perplexity(logits, stream, length, length, stop=stop, stage="judge", device=device, limit=limit)
    return sequence_perplexity(logits, data.sequences["validation"], stop=stop, stage="judge", device=device)


def perplexity_judge(measure: Callable[[], Generator[Event, None, Perplexity]], before: bool = False) -> Judge:
    """Epochs by the perplexity that ``measure`` gives; see ``Judge`` for ``before``."""

    def judged() -> Generator[Event, None, Judged]:
        value = (yield from measure()).value
        return Judged(value, (-value,))

    return Judge(judged, "perplexity", before)
