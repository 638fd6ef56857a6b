"""Images without labels that calibrate, while labelled ones measure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from engine.data.images.base import Data, Subset
from engine.data.images.image_files import SUFFIXES, FileSplit
from engine.data.images.imagefolder import list_images
from engine.data.images.splitting import permutation
from engine.errors import EngineError
from engine.models.transform import Transform

_SEED = 13


def with_calibration(data: Data, folder: Path, any_size: bool = False) -> Data:
    """``data`` with the images in ``folder``, and in those below it, for calibration, scaled and cropped as its own are; with
    ``any_size`` also where its own come as they are. Their order is drawn by a fixed seed, so that the first ones are a fair sample.
    Raises EngineError for a folder that is not there or holds no images."""
    if not folder.is_dir():
        raise EngineError(f"calibration folder {folder} does not exist: check the path given to --calibration-from")
    paths = list_images(folder)
    if not paths:
        raise EngineError(f"calibration folder {folder} holds no images ({', '.join(SUFFIXES)}): put images into it")
    _, height, width = data.shape
    transform = data.transform
    if transform is None and any_size and height == width:
        transform = Transform(height, height)
    whole = FileSplit(tuple(paths), torch.zeros(len(paths), dtype=torch.int64), (height, width), transform)
    split = Subset(whole, torch.from_numpy(permutation(len(whole), _SEED)))
    said = f"calibration on images of {folder.resolve().name} ({len(paths):,} without labels), not on training images"
    return replace(data, calibration=split, notes=(*data.notes, said))
