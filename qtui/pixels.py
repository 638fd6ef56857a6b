"""Small pictures in cells: two pixels a cell, one above the other, with what a model drew on them. Pure functions of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from engine.events.pictures import Box, Look, Picture

Colour = tuple[int, int, int]
# Of equal steps in brightness too, so that they are told apart as greys: of Okabe & Ito's palette for all eyes.
CLASSES: tuple[Colour, ...] = (
    (86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0), (0, 114, 178), (245, 245, 245),
)  # fmt: skip
_SHADES = " ░▒▓█"
_SHARE = 0.6


@dataclass(frozen=True)
class Pixels:
    """``rows`` of pixels, each red, green and blue from 0 to 255; ``boxes`` are drawn once the size is known, or their lines would be
    lost."""

    rows: tuple[tuple[Colour, ...], ...]
    boxes: tuple[Box, ...] = ()

    @property
    def width(self) -> int:
        return len(self.rows[0]) if self.rows else 0

    @property
    def height(self) -> int:
        return len(self.rows)


def pixels(picture: Picture, look: Look | None = None) -> Pixels:
    """A picture with a mask laid on it and boxes around what was found; class 0 of a mask is the background."""
    width, rgb = picture.width, picture.rgb
    flat: list[Colour] = [(rgb[i], rgb[i + 1], rgb[i + 2]) for i in range(0, len(rgb), 3)]
    if look is not None and look.mask:
        flat = [_blended(colour, kind) for colour, kind in zip(flat, look.mask, strict=True)]
    rows = [flat[start : start + width] for start in range(0, len(flat), width)]
    return Pixels(tuple(map(tuple, rows)), look.boxes if look is not None else ())


def class_colour(kind: int) -> Colour:
    """The colour of a class."""
    return CLASSES[kind % len(CLASSES)]


def fitted(found: Pixels, width: int, height: int) -> Pixels:
    """The same in at most ``width`` cells by ``height`` rows of cells, its proportions kept, with its boxes; a small one is made larger
    by whole numbers."""
    if width < 1 or height < 1 or not found.width:
        return Pixels(())
    scale = min(width / found.width, 2 * height / found.height)
    scale = float(int(scale)) if scale >= 1 else scale
    columns, lines = max(round(found.width * scale), 1), max(round(found.height * scale), 1)
    across, down = (_parts(count, whole) for count, whole in ((columns, found.width), (lines, found.height)))
    rows = [[_mean(found, xs, ys) for xs in across] for ys in down]
    for box in found.boxes:
        colour = class_colour(box.kind)
        left, right = (_scaled(x, scale, columns) for x in (box.left, box.right))
        top, bottom = (_scaled(y, scale, lines) for y in (box.top, box.bottom))
        for x in range(left, right + 1):
            rows[top][x] = rows[bottom][x] = colour
        for y in range(top, bottom + 1):
            rows[y][left] = rows[y][right] = colour
    return Pixels(tuple(map(tuple, rows)))


def _parts(count: int, whole: int) -> list[range]:
    """``whole`` pixels shared out to ``count``, at least one each."""
    ends = [place * whole // count for place in range(count + 1)]
    return [range(start, max(stop, start + 1)) for start, stop in pairwise(ends)]


def _mean(found: Pixels, xs: range, ys: range) -> Colour:
    some = [found.rows[y][x] for y in ys for x in xs]
    red, green, blue = (round(sum(colour[part] for colour in some) / len(some)) for part in range(3))
    return red, green, blue


def _scaled(place: int, scale: float, most: int) -> int:
    return min(int((place + 0.5) * scale), most - 1)


def cells(found: Pixels) -> list[list[tuple[Colour, Colour]]]:
    """Rows of cells, each the pixel above and the one below; an odd last row stands twice."""
    rows = found.rows
    return [list(zip(rows[y], rows[min(y + 1, len(rows) - 1)], strict=True)) for y in range(0, len(rows), 2)]


def shades(found: Pixels) -> list[str]:
    """The same in five greys, for terminals of sixteen colours: two pixels a cell as one."""
    return ["".join(_shade([above, below]) for above, below in row) for row in cells(found)]


def _shade(colours: Sequence[Colour]) -> str:
    grey = sum(0.299 * r + 0.587 * g + 0.114 * b for r, g, b in colours) / len(colours)
    return _SHADES[min(int(grey / 256 * len(_SHADES)), len(_SHADES) - 1)]


def _blended(colour: Colour, kind: int) -> Colour:
    if kind == 0:
        return colour
    # On a grey the colours of classes are those of their legend.
    grey, over = sum(colour) / 3, class_colour(kind)
    r, g, b = (round(_SHARE * part + (1 - _SHARE) * grey) for part in over)
    return r, g, b
