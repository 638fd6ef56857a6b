"""Sequences of unlike length in one batch."""

from __future__ import annotations

import torch

from engine.data.text.batching import filled


def test_shorter_ones_are_filled_up_with_their_last_token() -> None:
    ids, keep = filled([torch.tensor([7, 8]), torch.tensor([1, 2, 3, 4]), torch.tensor([5])])
    assert ids.tolist() == [[7, 8, 8, 8], [1, 2, 3, 4], [5, 5, 5, 5]] and ids.dtype == torch.int64
    assert keep.tolist() == [[True, True, False, False], [True] * 4, [True, False, False, False]]
