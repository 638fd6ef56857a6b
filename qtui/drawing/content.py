"""What a table holds: its columns and rows, and the row the cursor is on."""

from __future__ import annotations

from qtui.drawing.columns import Plan, arrange
from qtui.drawing.rows import Column, Measure, Row, measure
from qtui.drawing.text import cells, safe


class Content:
    """Columns, rows and the cursor, an index into the rows (-1 where no row can be selected)."""

    def __init__(self, *, marks: bool = False) -> None:
        self.columns: tuple[Column, ...] = ()
        self.rows: tuple[Row, ...] = ()
        self.cursor = -1
        self._marks = marks
        self._marked = marks
        self._glyph = 0
        self._places: dict[str, int] = {}
        self._measures: tuple[Measure, ...] = ()

    @property
    def key(self) -> str | None:
        """The key of the row under the cursor."""
        return self.rows[self.cursor].key if self.cursor >= 0 else None

    def replace(self, columns: tuple[Column, ...], rows: tuple[Row, ...]) -> None:
        """Hold these instead. The cursor follows its row; where that is gone it takes the next one that is left."""
        old, gone = self.cursor, self.rows
        places = {row.key: index for index, row in enumerate(rows)}
        found = measure(columns, rows)
        # Columns that got narrower and wider with every figure of a live table would make it dance.
        if columns == self.columns and places.keys() == self._places.keys():
            found = tuple(a.wider(b) for a, b in zip(found, self._measures, strict=True))
        self.columns, self.rows, self._places, self._measures = columns, rows, places, found
        self._glyph = max((cells(safe(row.glyph)) for row in rows), default=0)
        self._marked = self._marks or any(row.marked for row in rows)
        followers = (row.key for row in (*gone[old:], *reversed(gone[:old]))) if old >= 0 else ()
        self.cursor = self.nearest(next((places[key] for key in followers if key in places), 0))

    def plan(self, width: int, skipped: int | None) -> Plan:
        """How the columns stand in ``width`` cells."""
        return arrange(self.columns, self._measures, width, marks=self._marked, glyph=self._glyph, skipped=skipped)

    def find(self, key: str) -> int:
        """The index of the row with this key, where it can be selected; else -1."""
        index = self._places.get(key, -1)
        return index if self.selectable(index) else -1

    def selectable(self, index: int) -> bool:
        """Whether there is such a row and the cursor may stand on it."""
        return 0 <= index < len(self.rows) and self.rows[index].selectable

    def nearest(self, index: int, by: int = 1) -> int:
        """The row that can be selected closest to ``index``, in direction ``by`` first; -1 where there is none."""
        index = min(max(index, 0), len(self.rows) - 1)
        found = self.beyond(index - by, by)
        return found if found >= 0 else self.beyond(index, -by)

    def beyond(self, index: int, by: int) -> int:
        """The next row after ``index`` in direction ``by`` that can be selected; -1 where there is none."""
        index += by
        while 0 <= index < len(self.rows):
            if self.rows[index].selectable:
                return index
            index += by
        return -1
