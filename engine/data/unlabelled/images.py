"""Images without labels, in a folder and those below it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.data.images.image_files import fitted, opened, told_size, turned
from engine.data.items import Items
from engine.models.transform import Transform, Triple

_LOOKED_AT = 500


@dataclass(frozen=True)
class Look:
    """How an image becomes an input: ``transform`` scales and crops, None leaves sizes as they are; ``mean`` and ``std`` are of pixels
    in 0..1, and of one channel the mean of the three."""

    transform: Transform | None
    mean: Triple
    std: Triple
    grey: bool = False

    def read(self, path: Path) -> Tensor:
        """The image at ``path``, float32 (3, H, W), or (1, H, W) of grey ones. Raises EngineError where it cannot be decoded."""
        image = opened(str(path))
        if self.transform is not None:
            image = fitted(image, self.transform)
        mean, std = (torch.tensor(values) for values in (self.mean, self.std))
        if self.grey:
            image, mean, std = image.convert("L"), mean.mean()[None], std.mean()[None]
        pixels = torch.from_numpy(np.array(image)).float().div_(255)
        pixels = pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
        return pixels.sub_(mean[:, None, None]).div_(std[:, None, None]).contiguous()

    def __str__(self) -> str:
        size = str(self.transform) if self.transform else "each in its own size"
        mean, std = ((sum(v) / 3,) if self.grey else v for v in (self.mean, self.std))
        told = ", ".join(f"{value:.4g}" for value in mean), ", ".join(f"{value:.4g}" for value in std)
        return f"{'one grey channel' if self.grey else 'RGB'}, {size}, (pixels − {told[0]}) / {told[1]}"


@dataclass(frozen=True, eq=False)
class ImageItems:
    """Images by path, read when they are asked for; those of one size can be read together."""

    paths: tuple[Path, ...]
    look: Look

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def _sizes(self) -> dict[int, tuple[int, int]]:
        return {}

    def read(self, places: Sequence[int]) -> Items:
        return Items(torch.stack([self.look.read(self.paths[i]) for i in places]), [None] * len(places))

    def kind(self, place: int) -> Hashable:
        if self.look.transform is not None:
            return None
        if place not in self._sizes:
            self._sizes[place] = told_size(str(self.paths[place]))[::-1]
        return self._sizes[place]


def notes(paths: Sequence[Path]) -> list[str]:
    """What is to be told of the files themselves."""
    looked_at = paths[:: max(1, len(paths) // _LOOKED_AT)]
    count = turned([str(path) for path in looked_at])
    if not count:
        return []
    return [f"{count:,} of {len(looked_at):,} images looked at ask by EXIF to be turned: they are not, as in torchvision"]
