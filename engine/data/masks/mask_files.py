"""Masks as files: a class for each pixel, as the number or the palette's index that the file stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from engine.data.images.image_files import levels, orientation, told_size
from engine.data.images.preparation import Preparation
from engine.data.items import Items
from engine.errors import EngineError

# Of no class: pixels that are not measured, as in Pascal VOC.
IGNORED = 255
SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")
_LOSSY = (".jpg", ".jpeg")
_QUARTER_TURNS = (5, 6, 7, 8)


@dataclass(frozen=True)
class Pair:
    """The paths of an image and of its mask."""

    image: str
    mask: str

    def upright(self, mask: tuple[int, int]) -> bool:
        """Whether the image is to be turned as its EXIF data ask: where its mask, of size (W, H), was drawn on it so. Raises EngineError
        for a mask of another size."""
        width, height = told_size(self.image)
        if mask == (width, height):
            return False
        if mask == (height, width) and orientation(self.image) in _QUARTER_TURNS:
            return True
        raise EngineError(
            f"{self.mask} is {mask[0]}x{mask[1]} and its image {self.image} is {width}x{height}: give a mask of the image's size"
        )


def read_mask(path: str) -> npt.NDArray[np.int64]:
    """The numbers that a mask stores, (H, W). Raises EngineError for a picture in colours, or in a format that changes numbers."""
    if Path(path).suffix.lower() in _LOSSY:
        raise EngineError(f"{path} is a JPEG, which changes the numbers of classes: save masks as PNG")
    stored, mode = levels(path)
    if stored.ndim == 3:
        colours = stored[..., :3] if mode in ("RGB", "RGBA", "RGBX") else stored[..., :1]
        if (colours != colours[..., :1]).any():
            raise EngineError(f"{path} is a picture in colours: give a class number for each pixel (PNG in grey or with a palette)")
        stored = colours[..., 0]
    if not (np.issubdtype(stored.dtype, np.integer) or stored.dtype == np.bool_):
        raise EngineError(f"{path} holds fractions (mode {mode}): give a class number for each pixel (PNG in grey or with a palette)")
    return stored.astype(np.int64)


@dataclass(frozen=True, eq=False)
class MaskSplit:
    """Images and masks by path, read when they are asked for. ``whites`` reads 255 as the class 1, of masks that hold 0 and 255 alone."""

    pairs: Sequence[Pair]
    preparation: Preparation
    classes: int
    whites: bool = False

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, places: Sequence[int]) -> Items:
        """Images float32 (N, channels, H, W) and masks int64 (N, H, W)."""
        height, width = self.preparation.frame
        images = torch.empty((len(places), self.preparation.channels, height, width), dtype=torch.uint8)
        masks = torch.empty((len(places), height, width), dtype=torch.int64)
        for row, place in enumerate(places):
            pair = self.pairs[place]
            numbers = self._numbers(pair.mask)
            images[row] = self.preparation.image(pair.image, pair.upright((numbers.shape[1], numbers.shape[0])))
            scaled = self.preparation.mask(Image.fromarray(numbers.astype(np.int32)))
            masks[row] = torch.from_numpy(np.array(scaled, dtype=np.int64))
        return Items(self.preparation.normalized(images), masks)

    def _numbers(self, path: str) -> npt.NDArray[np.int64]:
        numbers = read_mask(path)
        if self.whites:
            numbers = np.where(numbers == IGNORED, 1, numbers)
        outside = numbers[((numbers < 0) | (numbers >= self.classes)) & (numbers != IGNORED)]
        if len(outside):
            raise EngineError(
                f"{path} has class {outside[0]} and there are {self.classes} (0 to {self.classes - 1}, {IGNORED} is not measured): "
                "correct the mask, or name all classes with --classes FILE"
            )
        return numbers
