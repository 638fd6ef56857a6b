"""Token sequences of unlike length as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def filled(several: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Token ids (tokens,) each as ids (N, T), and where they are no filling, bool (N, T).

    Shorter ones are filled up on the right, which a causal model does not see, with their last token: it is in the vocabulary, and
    no sign of padding."""
    longest = max(len(ids) for ids in several)
    rows = torch.stack([torch.cat([ids, ids[-1:].expand(longest - len(ids))]) for ids in several])
    lengths = torch.tensor([len(ids) for ids in several], device=rows.device)
    return rows, torch.arange(longest, device=rows.device) < lengths[:, None]
