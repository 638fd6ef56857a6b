"""The diabetes study that scikit-learn ships: 442 patients, ten measurements each, and the progression of the disease after a year."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from engine.data.items import ItemData, Items, MemoryItems, SomeItems, divided

SPLIT_SEED = 442


def load(part: Any) -> ItemData:
    """Features float32 (10,), scaled to unit variance, and the progression float32 (1,), between 25 and 346: 310 patients for training,
    44 for validation and 88 for test."""
    from sklearn.datasets import load_diabetes

    features, targets = load_diabetes(return_X_y=True)
    inputs = torch.from_numpy(np.asarray(features, dtype=np.float32)) * len(features) ** 0.5
    whole = MemoryItems(Items(inputs, torch.from_numpy(np.asarray(targets, dtype=np.float32))[:, None]))
    splits = {name: SomeItems(whole, places) for name, places in divided(len(whole), SPLIT_SEED).items()}
    return ItemData(
        "diabetes", splits["train"], splits["validation"], splits["test"], outputs=1, labels=("progression",),
        about={"features": inputs.shape[1]},
    )  # fmt: skip
