"""What of a text is read for what."""

from __future__ import annotations

import tiny_language
import torch

from engine.tasks.causal_lm import DECIDING


def test_a_part_of_the_sequences_is_the_first_of_them_not_the_shortest() -> None:
    some = tuple(torch.arange(length) for length in (9, 3, 12, 1, 5))
    task = tiny_language.task(some, context=12)
    assert [len(ids) for ids, _ in task.parts("test")] == [9, 3, 12, 5]
    assert [(len(ids), first) for ids, first in task.parts("test", limit=24)] == [(9, 1), (3, 1)]


def test_choices_read_the_first_windows_of_validation_and_figures_the_whole_test() -> None:
    many = tuple(torch.arange(2 + number) for number in range(DECIDING + 3))
    task = tiny_language.task(many, context=30)
    assert [len(ids) for ids, _ in task.parts("validation")] == [2 + number for number in range(DECIDING)]
    assert len(task.parts("test")) == DECIDING + 3
    stream = tiny_language.task(torch.arange(40 * 4) % 9, 2, context=4)
    assert len(stream.parts("validation")) == DECIDING and all(len(ids) == 4 and first == 1 for ids, first in stream.parts("validation"))
    assert len(stream.parts("test")) == 79
