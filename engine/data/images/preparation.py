"""How images of one's own files become what a model reads, whatever its outputs are held against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.data.images.image_files import fitted, opened
from engine.data.images.imagefolder import asked_transform
from engine.errors import EngineError
from engine.models.transform import MEAN, STD, Transform, Triple

# Networks halve images five times as a rule.
_STEP = 32


@dataclass(frozen=True)
class Preparation:
    """``transform`` scales and crops images, None where all have the (H, W) of ``frame``. ``mean`` and ``std`` are for pixels in 0..1;
    of images with one channel, which are grey, their averages count."""

    frame: tuple[int, int]
    transform: Transform | None
    mean: Triple
    std: Triple
    channels: int = 3

    def image(self, path: str, upright: bool = False) -> Tensor:
        """The image at ``path``, uint8 (channels, H, W). Raises EngineError where it cannot be read or has another size."""
        image = opened(path, upright)
        height, width = self.frame
        if self.transform is not None:
            image = fitted(image, self.transform)
        elif image.size != (width, height):
            found = f"{image.width}x{image.height}"
            raise EngineError(f"{path} is {found} but the first image is {width}x{height}: give --size (data.size) to resize")
        pixels = np.array(image if self.channels == 3 else image.convert("L"))
        return torch.from_numpy(pixels).view(height, width, self.channels).permute(2, 0, 1)

    def mask(self, classes: Image.Image) -> Image.Image:
        """A mask as the image that it belongs to: scaled without new numbers."""
        return classes if self.transform is None else fitted(classes, self.transform, nearest=True)

    def normalized(self, images: Tensor) -> Tensor:
        """Images uint8 (N, channels, H, W) as float32."""
        return normalized(images, self.mean, self.std)

    def about(self) -> dict[str, Any]:
        """For the report's ``data``."""
        return {"mean": list(self.mean), "std": list(self.std), **({"transform": str(self.transform)} if self.transform else {})}


def normalized(images: Tensor, mean: Triple, std: Triple) -> Tensor:
    """Images uint8 (N, 1 or 3, H, W) as float32, less ``mean`` and divided by ``std``."""
    middle, spread = (torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (mean, std))
    if images.shape[1] == 1:
        middle, spread = middle.mean(1, keepdim=True), spread.mean(1, keepdim=True)
    return images.to(torch.float32).div_(255).sub_(middle).div_(spread)


def preparation(part: Any, sizes: Sequence[tuple[int, int]], place: Path, largest: int) -> tuple[Preparation, tuple[str, ...]]:
    """What the options of ``part`` and the ``sizes`` (W, H) of the images ask, and notes that say what was chosen: images of several
    sizes are brought to one that all of them have, ``largest`` at most, where none is asked for."""
    transform, notes = asked_transform(place, part.size, part.crop, part.interpolation, None), []
    found = Counter(sizes)
    if transform is None and len(found) > 1:
        shorter = min(min(size) for size in found)
        side = min(largest, shorter // _STEP * _STEP or shorter)
        transform = Transform(side, side)
        notes.append(f"images come in {len(found):,} sizes: {transform}; --size N (data.size) asks for another")
    width, height = sizes[0]
    frame = (transform.size, transform.size) if transform else (height, width)
    return Preparation(frame, transform, part.mean or MEAN, part.std or STD, part.channels or 3), tuple(notes)
