"""What of a text is read for what."""

from __future__ import annotations

import tiny_language
import torch

from engine.data.text.encoded import SequenceData
from engine.tasks.causal_lm_loading import LoadedLanguage


def test_a_part_of_the_sequences_is_the_first_of_them_not_the_shortest() -> None:
    some = tuple(torch.arange(length) for length in (9, 3, 12, 1, 5))
    loaded = LoadedLanguage(tiny_language.language(), SequenceData("s", {"test": some}), 12, "")
    assert [len(ids) for ids, _ in loaded.parts("test", 4)] == [9, 3, 12, 5]
    assert [(len(ids), first) for ids, first in loaded.parts("test", 4, limit=24)] == [(9, 1), (3, 1)]
