"""A table that draws only the lines and cells that changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from qtui.drawing.columns import Plan
from qtui.drawing.content import Content
from qtui.drawing.rows import Cell, Column, Row
from qtui.drawing.sorting import Order, is_flat, ordered, titled
from qtui.drawing.spans import Line, plain
from qtui.drawing.table_lines import header, message, row_line
from qtui.widgets.roles import component_classes, repaint, strip

__all__ = ["Cell", "Column", "Grid", "Row"]

_WHEEL = 3
_HEADER = 1


class Grid(ScrollView, can_focus=True, inherit_bindings=False):
    """Rows under a fixed header. ``show`` replaces what it shows; the cursor stays on its row.

    Roles of rows and cells: ``dim``, ``accent``, ``change``, ``harm``, ``good``, ``title``.
    """

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = component_classes(
        "grid", ("cursor", "pointer", "header", "marked", "dim", "accent", "change", "harm", "good", "title", "bar")
    )
    DEFAULT_CSS = """
    Grid {
        width: 1fr;
        height: 1fr;
        overflow-x: hidden;
        overflow-y: auto;
        scrollbar-size-vertical: 1;
        & > .grid--header { color: $text-muted; text-style: bold; }
        & > .grid--dim { color: $text-muted; }
        & > .grid--title { text-style: bold; }
        & > .grid--accent { color: $text-accent; }
        & > .grid--change { color: $text-warning; }
        & > .grid--marked { color: $text-warning; text-style: bold; }
        & > .grid--harm { color: $text-error; text-style: bold; }
        & > .grid--good { color: $text-success; }
        & > .grid--bar, & > .grid--pointer { color: $primary; }
        & > .grid--cursor { background: $block-cursor-blurred-background; text-style: bold; }
        &:focus > .grid--cursor { color: $block-cursor-foreground; background: $block-cursor-background; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home,g", "edge(-1)", "First", show=False),
        Binding("end,G", "edge(1)", "Last", show=False),
        Binding("left", "columns(-1)", "Earlier columns", show=False),
        Binding("right", "columns(1)", "Later columns", show=False),
        Binding("enter", "choose", "Choose", show=False),
    ]

    class _About(Message):
        def __init__(self, grid: Grid, key: str) -> None:
            super().__init__()
            self.grid = grid
            self.key = key

        @property
        def control(self) -> Grid:
            """The grid it is about."""
            return self.grid

    class Moved(_About):
        """The cursor is on another row, by a key, the mouse or because its row went away."""

    class Chosen(_About):
        """Enter or a double click on a row."""

    def __init__(
        self,
        *,
        empty: str = "",
        marks: bool = False,
        scroll_columns: bool = False,
        id: str | None = None,
        classes: str | None = None,
    ) -> None:
        """``empty`` is said where there are no rows. ``marks`` keeps room for the sign of marked rows even while none is.
        With ``scroll_columns`` columns that do not fit are reached with left and right instead of being dropped."""
        super().__init__(id=id, classes=classes)
        self.scroll_columns = scroll_columns
        self._content = Content(marks=marks)
        self._empty = empty
        self._skipped = 0
        self._plan: Plan | None = None
        self._order: Order | None = None
        self._given: tuple[tuple[Column, ...], tuple[Row, ...]] = ((), ())

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns as shown last, dropped ones included."""
        return self._content.columns

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows as shown last."""
        return self._content.rows

    @property
    def cursor(self) -> str | None:
        """The key of the row under the cursor; None where there is no row to be on."""
        return self._content.key

    @property
    def empty(self) -> str:
        """What is said in the middle where there are no rows."""
        return self._empty

    @empty.setter
    def empty(self, text: str) -> None:
        if text != self._empty:
            self._empty = text
            if not self.rows:
                self.refresh()

    def show(self, columns: Iterable[Column], rows: Iterable[Row]) -> None:
        """Show these columns and rows. The cursor stays on the row of its key, at its place on the screen; where that row
        is gone it takes the next one that is left. What did not change is not painted again."""
        self._given = columns, rows = tuple(columns), tuple(rows)
        if self._order is not None:
            columns, rows = titled(columns, self._order) if is_flat(rows) else columns, ordered(columns, rows, self._order)
        content = self._content
        if columns == content.columns and rows == content.rows:
            return
        before, width, offset = self._visible(), self._width(), self.scroll_offset.y
        key, old = content.key, content.cursor
        if [column.key for column in columns] != [column.key for column in content.columns]:
            self._skipped = 0
        content.replace(columns, rows)
        self._plan = None
        self._resize(Size(0, _HEADER + len(rows)))
        if old >= 0 and self._on_screen(old, offset):
            offset += content.cursor - old
        self._place(offset)
        repaint(self, before if self._width() == width else [], self._visible() or [[]])
        if content.key is not None and content.key != key:
            self.post_message(self.Moved(self, content.key))

    @property
    def given(self) -> tuple[tuple[Column, ...], tuple[Row, ...]]:
        """The columns and rows as they were handed over, before a person ordered them."""
        return self._given

    @property
    def order(self) -> Order | None:
        """By what a person has ordered the rows; None in the table's own order."""
        return self._order

    def sort(self, order: Order | None) -> bool:
        """Order the rows, from now on; False for a tree, whose rows have their places."""
        if not is_flat(self._given[1]):
            return False
        self._order = order
        self.show(*self._given)
        return True

    def in_view(self) -> frozenset[str]:
        """The keys of the rows that are on the screen."""
        top = self.scroll_offset.y
        return frozenset(row.key for row in self.rows[top : top + max(self.size.height - _HEADER, 0)])

    def move_to(self, key: str) -> bool:
        """Put the cursor on a row and bring it into view; False where there is no such row."""
        index = self._content.find(key)
        self._go(index)
        return index >= 0

    def render_line(self, y: int) -> Strip:
        """One line of the viewport: the header or a row, in the theme's styles."""
        if not self.rows:
            lines = message(self._empty, self._width(), self.size.height)
            return strip(self, "grid", lines[y] if y < len(lines) else [])
        if not self._at_cursor(y):
            return strip(self, "grid", self._line(y))
        if not (self.app.no_color and self.has_focus):
            return strip(self, "grid", self._line(y), "cursor")
        # Two greys close to each other are all that is left of the cursor's colours without colour.
        return strip(self, "grid", [(plain(self._line(y)), "")], reverse=True)

    def action_move(self, by: int) -> None:
        """Move the cursor to the next row that can be selected in this direction."""
        index = self._content.beyond(self._content.cursor, by)
        if index >= 0:
            self._go(index)
        elif by < 0:
            self._scroll(0)

    def action_page(self, by: int) -> None:
        """Move the cursor by one screen of rows."""
        self._go(self._content.nearest(self._content.cursor + by * max(self.size.height - _HEADER - 1, 1), by))

    def action_edge(self, by: int) -> None:
        """Move the cursor to the first or the last row."""
        self._go(self._content.nearest(0 if by < 0 else len(self.rows) - 1))
        if by < 0:
            self._scroll(0)

    def action_columns(self, by: int) -> None:
        """Scroll by one column; the first stays in view."""
        plan = self._planned()
        if (by < 0 and plan.earlier) or (by > 0 and plan.later):
            before = self._visible()
            self._skipped += by
            self._plan = None
            repaint(self, before, self._visible())

    def action_choose(self) -> None:
        """Tell that the row under the cursor was chosen."""
        if self.cursor is not None:
            self.post_message(self.Chosen(self, self.cursor))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Left and right belong to the screen unless columns scroll."""
        return self.scroll_columns if action == "columns" else True

    def on_resize(self) -> None:
        """Keep the cursor in view."""
        self._go(self._content.cursor)

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the row; a double click chooses it."""
        offset = event.get_content_offset(self)
        if offset is not None and offset.y < _HEADER:
            self._click_header(offset.x)
            return
        index = self._index(offset.y) if offset is not None and offset.y >= _HEADER else -1
        if not self._content.selectable(index):
            return
        event.stop()
        self._go(index)
        if event.chain == 2:
            self.action_choose()

    def _click_header(self, x: int) -> None:
        """By this column, the largest first; once more the smallest first, then as the table was."""
        for place in self._planned().places:
            if place.x <= x < place.x + place.width:
                key, now = self.columns[place.index].key, self._order
                again = now is not None and now.column == key
                self.sort(Order(key) if not again else Order(key, False) if now is not None and now.descending else None)

    def _on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self._scroll(self.scroll_offset.y + _WHEEL)

    def _on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self._scroll(self.scroll_offset.y - _WHEEL)

    def _resize(self, size: Size) -> None:
        if size == self.virtual_size:
            return
        if self.styles.is_auto_height or not self.is_mounted:
            self.virtual_size = size
        else:
            # A layout of the whole screen for each row that comes would cost more than the row.
            self.set_reactive(Widget.virtual_size, size)
            self._scroll_update(size)

    def _width(self) -> int:
        return self.scrollable_content_region.width

    def _planned(self) -> Plan:
        width = self._width()
        if self._plan is None or self._plan.width != width:
            self._plan = self._content.plan(width, self._skipped if self.scroll_columns else None)
        return self._plan

    def _index(self, y: int) -> int:
        return y - _HEADER + self.scroll_offset.y

    def _at_cursor(self, y: int) -> bool:
        return y >= _HEADER and self._index(y) == self._content.cursor

    def _line(self, y: int) -> Line:
        if y == 0:
            return header(self._planned(), self.columns)
        index = self._index(y)
        if not 0 <= index < len(self.rows):
            return [(" " * self._width(), "")]
        return row_line(self._planned(), self.columns, self.rows[index], cursor=self._at_cursor(y))

    def _visible(self) -> list[Line]:
        """What is on the screen, to compare with; nothing where there is no size yet, or a message instead of rows."""
        if not self.rows or not self._width():
            return []
        lines = [self._line(y) for y in range(self.size.height)]
        # The cursor colours its whole line, whatever the text.
        return [[(text, f"{role} cursor") for text, role in line] if self._at_cursor(y) else line for y, line in enumerate(lines)]

    def _on_screen(self, index: int, offset: int) -> bool:
        return offset <= index < offset + max(self.size.height - _HEADER, 1)

    def _go(self, index: int) -> None:
        if index < 0:
            return
        old, self._content.cursor = self._content.cursor, index
        room = max(self.size.height - _HEADER, 1)
        offset = self.scroll_offset.y
        self._scroll(index if index < offset else max(offset, index - room + 1))
        if old == index:
            return
        if self.scroll_offset.y == offset:
            for row in (old, index):
                if self._on_screen(row, offset):
                    self.refresh(Region(0, row - offset + _HEADER, self._width(), 1))
        self.post_message(self.Moved(self, self.rows[index].key))

    def _scroll(self, y: int) -> None:
        self.scroll_y = self.scroll_target_y = min(max(y, 0), self.max_scroll_y)

    def _place(self, y: int) -> None:
        # Without the repaint that follows an assignment: the lines that differ are painted by themselves.
        y = min(max(y, 0), self.max_scroll_y)
        if y != self.scroll_offset.y:
            self.set_reactive(Widget.scroll_y, float(y))
            self.set_reactive(Widget.scroll_target_y, float(y))
            if self.show_vertical_scrollbar:
                self.vertical_scrollbar.position = y
