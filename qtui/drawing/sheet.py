"""A sheet of cells to put text on, each cell with a role."""

from __future__ import annotations

from qtui.drawing.spans import Line, merged
from qtui.drawing.text import cells, safe


class Sheet:
    """``width`` by ``height`` cells. What goes over an edge is left out."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = max(width, 0), max(height, 0)
        self._chars = [[" "] * self.width for _ in range(self.height)]
        self._roles = [[""] * self.width for _ in range(self.height)]

    def put(self, x: int, y: int, text: str, role: str = "") -> None:
        """Write ``text`` from cell ``(x, y)`` to the right."""
        if not 0 <= y < self.height:
            return
        for char in safe(text):
            wide = cells(char)
            if wide and x >= 0 and x + wide <= self.width:
                for at in range(x, x + wide):
                    self._clear(at, y)
                self._chars[y][x], self._roles[y][x] = char, role
                if wide == 2:
                    self._chars[y][x + 1], self._roles[y][x + 1] = "", role
            x += wide

    def free(self, x: int, y: int, width: int) -> bool:
        """Whether these cells are on the sheet and blank."""
        return 0 <= y < self.height and x >= 0 and x + width <= self.width and all(c == " " for c in self._chars[y][x : x + width])

    def lines(self) -> list[Line]:
        """The sheet from top to bottom."""
        return [merged(zip(chars, roles, strict=True)) for chars, roles in zip(self._chars, self._roles, strict=True)]

    def _clear(self, x: int, y: int) -> None:
        # Half of a wide character cannot stay.
        row = self._chars[y]
        if row[x] == "" and x:
            row[x - 1] = " "
        elif x + 1 < self.width and row[x + 1] == "":
            row[x + 1] = " "
        row[x] = " "


def note(text: str, width: int, height: int) -> list[Line]:
    """A dim line in the middle: what a chart without data says."""
    sheet = Sheet(width, height)
    kept = text if cells(text) <= width else ""
    sheet.put((sheet.width - cells(kept)) // 2, (sheet.height - 1) // 2, kept, "dim")
    return sheet.lines()
