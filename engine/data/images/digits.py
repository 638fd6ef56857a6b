"""Handwritten digits that scikit-learn ships: 1,797 scans, there on every machine without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from engine.data.images.base import Data, MemorySplit, Subset
from engine.data.images.splitting import permutation, take

SPLIT_SEED = 1797
TEST, VALIDATION = 360, 180
SIDE = 32
# Of all pixels of the train split divided by 255. Constants, so that a recipe's fingerprint does not hang on the last
# digit of a sum; they go with SPLIT_SEED and SIDE.
MEAN, STD = 0.3052, 0.3235


def load(folder: Path | None = None, size: int | None = None) -> Data:
    """Digits 0 to 9 as uint8 (3, 32, 32): train 1,257, validation 180 and test 360, each with the classes balanced.

    The 8x8 scans of 17 grey levels are enlarged bilinearly and repeated over the channels. A mirrored digit is no
    digit, so ``flip`` is False. ``folder`` and ``size`` have no meaning here.
    """
    from sklearn.datasets import load_digits

    scans, targets = load_digits(return_X_y=True)
    grey = torch.from_numpy(np.asarray(scans, dtype=np.float32)).view(-1, 1, 8, 8) * (255 / 16)
    enlarged = interpolate(grey, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    images = enlarged.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = np.asarray(targets, dtype=np.int64)
    whole = MemorySplit(images, torch.from_numpy(labels))

    everything = permutation(len(labels), SPLIT_SEED)
    test, rest = take(everything, labels, TEST, SPLIT_SEED)
    validation, train = take(rest, labels, VALIDATION, SPLIT_SEED)
    return Data(
        name="digits",
        classes=tuple("0123456789"),
        shape=(3, SIDE, SIDE),
        mean=(MEAN, MEAN, MEAN),
        std=(STD, STD, STD),
        train=Subset(whole, torch.from_numpy(train)),
        validation=Subset(whole, torch.from_numpy(validation)),
        test=Subset(whole, torch.from_numpy(test)),
        flip=False,
        pad=2,
    )
