"""Data of token ids: a JSON file that holds a list of sequences, for models whose tokens are no words."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from engine.data.text.documents import Split
from engine.errors import EngineError
from engine.reading import MB, read_json

_LARGEST = 1000 * MB
HALVES = "of the sequences every second one is for test, and of the others every eighth for validation"


def read_sequences(path: Path, rows: int, context: int) -> tuple[Tensor, ...]:
    """The sequences of a JSON file as 1-D int64 tensors, each once. ``rows`` is the size of the vocabulary.

    Raises EngineError, in one line, for a file that is no list of lists of integers, for an id that the vocabulary does not
    have, and for a sequence of fewer than two tokens or longer than the ``context``.
    """
    try:
        found = read_json(path, _LARGEST)
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror or error}): check the path given to --data") from error
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{path} cannot be read as JSON ({type(error).__name__}): give a list of lists of token ids") from error
    if not isinstance(found, list) or not found or not all(isinstance(ids, list) and all(type(i) is int for i in ids) for ids in found):
        raise EngineError(f"{path} is not a list of lists of token ids: write it as [[2, 17, 3], [2, 5, 3]]")
    for number, ids in enumerate(found):
        if not 2 <= len(ids) <= context:
            raise EngineError(f"{path}: sequence {number} has {len(ids):,} tokens: give 2 to {context:,}, the context of the model")
        if not 0 <= min(ids) <= max(ids) < rows:
            wrong = next(i for i in ids if not 0 <= i < rows)
            raise EngineError(
                f"{path}: sequence {number} has the token {wrong}, the model's go from 0 to {rows - 1:,}: another vocabulary?"
            )
    return tuple(torch.tensor(ids, dtype=torch.int64) for ids in dict.fromkeys(tuple(ids) for ids in found))


def halves(sequences: tuple[Tensor, ...]) -> dict[Split, tuple[Tensor, ...]]:
    """Every second sequence is for test; of the rest every eighth for validation. Raises EngineError for fewer than four."""
    if len(sequences) < 4:
        raise EngineError(f"{len(sequences)} different sequences cannot be split: give four or more")
    other = sequences[::2]
    return {"train": tuple(s for i, s in enumerate(other) if i % 8 != 1), "validation": other[1::8], "test": sequences[1::2]}
