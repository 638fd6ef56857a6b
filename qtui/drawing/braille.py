"""A canvas of braille dots: two by four in each cell."""

from __future__ import annotations

from collections.abc import Iterator

_BLANK = 0x2800
_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


class Canvas:
    """``width`` by ``height`` cells, hence ``2 * width`` by ``4 * height`` dots; (0, 0) is at the upper left. A dot beyond an
    edge is left out. Each cell remembers the role of the last dot set in it."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = max(width, 0), max(height, 0)
        self._bits = [[0] * self.width for _ in range(self.height)]
        self._roles = [[""] * self.width for _ in range(self.height)]

    def dot(self, x: int, y: int, role: str = "") -> None:
        """Set one dot."""
        if 0 <= x < 2 * self.width and 0 <= y < 4 * self.height:
            self._bits[y // 4][x // 2] |= _BITS[y % 4][x % 2]
            self._roles[y // 4][x // 2] = role

    def line(self, x0: int, y0: int, x1: int, y1: int, role: str = "") -> None:
        """A straight line of dots, both ends included (Bresenham)."""
        dx, dy = abs(x1 - x0), -abs(y1 - y0)
        step_x, step_y = (1 if x0 < x1 else -1), (1 if y0 < y1 else -1)
        error = dx + dy
        while True:
            self.dot(x0, y0, role)
            if x0 == x1 and y0 == y1:
                return
            doubled = 2 * error
            if doubled >= dy:
                error += dy
                x0 += step_x
            if doubled <= dx:
                error += dx
                y0 += step_y

    def drawn(self) -> Iterator[tuple[int, int, str, str]]:
        """Cells with dots in them: x, y, character, role."""
        for y, row in enumerate(self._bits):
            for x, bits in enumerate(row):
                if bits:
                    yield x, y, chr(_BLANK + bits), self._roles[y][x]

    def rows(self) -> list[str]:
        """The canvas as text; a cell without dots is a space."""
        return ["".join(chr(_BLANK + bits) if bits else " " for bits in row) for row in self._bits]
