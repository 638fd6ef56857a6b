"""Image files on disk, decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from engine.errors import EngineError
from engine.models.transform import Transform
from engine.reading import regular

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "GIF", "TIFF")
_ORIENTATION = 0x0112
_UPRIGHT = (None, 0, 1)


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Images by path: only ``paths`` and ``labels``, int64 (N,), are held. ``frame`` is the (H, W) every image comes in.

    With ``transform`` an image is scaled and its middle kept; without, one of another size is an ``EngineError`` when it
    is read, and so is a file that cannot be decoded.
    """

    paths: tuple[str, ...]
    labels: Tensor
    frame: tuple[int, int]
    transform: Transform | None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 (N, 3, H, W) and labels int64 (N,) at ``indices``."""
        height, width = self.frame
        images = torch.empty((len(indices), 3, height, width), dtype=torch.uint8)
        for row, index in enumerate(indices.tolist()):
            images[row] = torch.from_numpy(np.array(self._decode(self.paths[index]))).permute(2, 0, 1)
        return images, self.labels[indices]

    def _decode(self, path: str) -> Image.Image:
        image = opened(path)
        height, width = self.frame
        if self.transform is not None:
            return fitted(image, self.transform)
        if image.size != (width, height):
            found = f"{image.width}x{image.height}"
            raise EngineError(f"{path} is {found} but the first image is {width}x{height}: give --size (data.size) to resize")
        return image


def _open(path: str) -> Image.Image:
    """The image's header. A pipe or a device in a file's place is refused before it is waited for, and naming the formats keeps Pillow's
    rarer decoders away from files that only pretend to be images."""
    regular(Path(path))
    return Image.open(path, formats=_FORMATS)


def frame_size(path: str) -> tuple[int, int]:
    """(H, W) of the image at ``path``; ``EngineError`` when it cannot be decoded."""
    image = opened(path)
    return image.height, image.width


def told_size(path: str) -> tuple[int, int]:
    """(W, H) that the file at ``path`` says of itself, without decoding it. Raises EngineError where it is no image."""
    try:
        with _open(path) as image:
            return image.size
    except Exception as error:
        raise _unreadable(path, error) from error


def turned(paths: Sequence[str]) -> int:
    """How many of the images at ``paths`` ask, in their EXIF data, to be turned or mirrored before they are shown."""
    return sum(orientation(path) not in _UPRIGHT for path in paths)


def orientation(path: str) -> object:
    """How the EXIF data of the image at ``path`` ask to turn it, 5 to 8 by a quarter; None where they say nothing."""
    try:
        with _open(path) as image:
            return image.getexif().get(_ORIENTATION)
    except Exception:  # what cannot be read is told where it is read as an image
        return None


def opened(path: str, upright: bool = False) -> Image.Image:
    """The image at ``path`` in RGB of 8 bits, turned as its EXIF data ask where it is to be ``upright``. Raises EngineError."""
    try:
        with _open(path) as image:
            return _to_rgb(ImageOps.exif_transpose(image) if upright else image, path)
    except EngineError:
        raise
    except Exception as error:  # a damaged file can fail as anything, from OSError to struct.error
        raise _unreadable(path, error) from error


def levels(path: str) -> tuple[np.ndarray, str]:
    """The numbers that the image at ``path`` stores, (H, W) or (H, W, channels), a palette's indices among them, and Pillow's name of
    its mode. Raises EngineError, also for a file of several pages."""
    try:
        with _open(path) as image:
            if (pages := getattr(image, "n_frames", 1)) > 1:
                raise EngineError(f"{path} has {pages} pages: give a file with one for each image")
            return np.asarray(image), image.mode
    except EngineError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> EngineError:
    reason = type(error).__name__ if path in str(error) else str(error)[:100]
    return EngineError(f"{path} cannot be read as an image ({reason}): replace or remove it")


def _to_rgb(image: Image.Image, path: str) -> Image.Image:
    # Pillow would clip deeper pixels to 255 without a word.
    if image.mode.startswith(("I", "F")):
        return _from_16_bits(image, path)
    # Pillow warns on stderr when a palette with transparency goes to RGB in one step.
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image, path: str) -> Image.Image:
    """Grey levels of 16 bits as 8: divided by 257, so that 65,535 becomes 255."""
    levels = None if image.mode == "F" else np.asarray(image)
    if levels is None or levels.min() < 0 or levels.max() > 65535:
        raise EngineError(f"{path} has more than 16 bits a channel (mode {image.mode}): convert it to 8 or 16 bits")
    return Image.fromarray(np.round(levels / 257).astype(np.uint8)).convert("RGB")


_INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def fitted(image: Image.Image, transform: Transform, nearest: bool = False) -> Image.Image:
    """As torchvision's ``Resize`` and ``CenterCrop`` do it, to the pixel: weights were measured on exactly that. ``nearest`` keeps the
    numbers of a mask as they are."""
    shorter, longer = sorted(image.size)
    other = int(transform.resize * longer / shorter)
    scaled = (transform.resize, other) if image.width <= image.height else (other, transform.resize)
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.NEAREST if nearest else _INTERPOLATIONS[transform.interpolation])
    left, top = (round((side - transform.size) / 2) for side in image.size)
    return image.crop((left, top, left + transform.size, top + transform.size))
