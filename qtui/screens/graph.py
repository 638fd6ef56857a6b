"""The model's graph: which layers can be folded, what folding them does."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical

from engine.events.event import NodeRow
from qtui.actions import Action
from qtui.painting import titles
from qtui.screens.base import StageScreen, bindings
from qtui.screens.dialogs import Reading
from qtui.screens.graph_look import Look
from qtui.screens.graph_modules import by_path, module_table
from qtui.screens.graph_rows import Kind, Table, aligned, chosen, table
from qtui.screens.graph_text import details, effect, empty, sentence, subtitle, title
from qtui.stage_table import digit
from qtui.state import State
from qtui.widgets.filter_bar import FilterBar
from qtui.widgets.sentence import Sentence
from qtui.widgets.table import Grid

_WIDE = 100


class GraphScreen(StageScreen):
    """Which pairs are left for the conversion belongs to the screen until the question is answered."""

    stage = "graph"
    BINDINGS = bindings("graph")
    AUTO_FOCUS: ClassVar[str | None] = "#nodes"
    DEFAULT_CSS = """
    GraphScreen {
        .pane { border: round $border-blurred; border-title-color: $text-muted; border-subtitle-color: $text-muted; padding: 0 0 0 1; }
        .pane:focus-within { border: round $border; border-title-color: $foreground; border-title-style: bold; }
        .pane.-changed { border-subtitle-color: $success; }
        .pane.-warned { border-subtitle-color: $warning; }
        #main { width: 1fr; }
        #second { width: 1fr; display: none; }
        &.-both #second { display: block; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._look = Look()
        self._left: frozenset[str] = frozenset()
        self._traced: tuple[NodeRow, ...] = ()
        self._placed = False
        self._begin = False
        self._comparing = False
        self._painted: object = None
        self._about: object = None
        self._tables: tuple[Table, ...] = ()
        self._news = ("", "")

    def compose_body(self) -> ComposeResult:
        with Horizontal():
            with Vertical(id="main", classes="pane"):
                yield Grid(id="nodes")
                yield FilterBar()
            with Vertical(id="second", classes="pane"):
                yield Grid(id="after")

    def on_mount(self) -> None:
        first, second = self._grids
        self.watch(first, "scroll_y", lambda y: self._level(second, y), init=False)
        self.watch(second, "scroll_y", lambda y: self._level(first, y), init=False)

    def update(self, state: State) -> None:
        if state.run.traced is not self._traced:
            self._traced = state.run.traced
            self._left = frozenset(state.run.recipe.get("fold_later") or ())
            self._placed = self._comparing = False
            self._begin = True
        look = Look.of(state, self._left)
        if look != self._look:
            self._news, before, self._look = ("", ""), self._look, look
            arrived = look.folded and not before.folded and before.traced is look.traced
        else:
            arrived = False
        self._paint(state)
        if arrived and (news := effect(look)):
            self._news = (news, self._main_grid.cursor or "")
        self.query_one(Sentence).keep(self._sentence())

    @property
    def _grids(self) -> tuple[Grid, Grid]:
        return self.query_one("#nodes", Grid), self.query_one("#after", Grid)

    @property
    def _main_grid(self) -> Grid:
        return self.query_one("#nodes", Grid)

    @property
    def _bar(self) -> FilterBar:
        return self.query_one(FilterBar)

    @property
    def _both(self) -> bool:
        return self._comparing and self.size.width >= _WIDE

    @property
    def _before(self) -> bool:
        """Whether the main table shows the graph as traced."""
        return self._comparing or not self._look.folded

    def _node(self) -> NodeRow | None:
        key = self._main_grid.cursor or ""
        return (None if self._before else self._look.after(key)) or self._look.node(key)

    def _sentence(self) -> str:
        text, at = self._news
        return text if text and at == self._main_grid.cursor else sentence(self._look, self._node())

    def _paint(self, state: State) -> None:
        """The tables and their borders; nothing where nothing that is in them changed."""
        look, wanted, width = self._look, self._bar.text, self.size.width
        grid, second = self._grids
        grid.empty = empty(state, wanted)
        painted = (look, wanted, width, self._comparing)
        if painted == self._painted:
            return
        self._painted = painted
        self.set_class(self._both, "-both")
        if second.has_focus and not self._both:
            grid.focus()
        key = self._kept(grid.cursor)
        tables = self._built(look, width)
        for shown, made in zip((grid, second), tables, strict=False):
            left = chosen(look, made.rows, wanted, self._before)
            shown.show(made.columns, by_path(left) if wanted and look.modular else left)
        total, count = len(tables[0].rows), len(grid.rows)
        if self._begin and grid.rows:
            self._begin = False
            grid.move_to(grid.rows[0].key)
        elif key is not None:
            grid.move_to(key)
        self._bar.count(count, total)
        self._place()
        self._borders(self._bar.filtered(count, total))
        if self._both:
            self._follow(grid.cursor)

    def _built(self, look: Look, width: int) -> tuple[Table, ...]:
        """The tables without a filter; kept, so that typing one only chooses among their rows."""
        about = (look, self._both, width, self._comparing)
        if about != self._about:
            self._about = about
            before = self._before
            kind: Kind = "wide" if width >= _WIDE else "narrow"
            nodes = look.traced if before else look.fused
            # What borders, the cursor's sign and a scrollbar leave.
            if look.modular:
                self._tables = (module_table(nodes),)
                return self._tables
            self._tables = aligned(look, width // 2 - 6) if self._both else (table(look, nodes, kind, width - 6, before),)
        return self._tables

    def _borders(self, count: str) -> None:
        look, room = self._look, self.size.width - 8
        main, second = self.query_one("#main"), self.query_one("#second")
        shown = second if self._both else main
        if self._both:
            room = room // 2 - 2
            titles(main, None, "")
            titles(second, title(look, f"{len(look.fused):,}", room))
        titles(main, title(look, count, room, before=self._comparing))
        titles(shown, None, subtitle(look, room))
        shown.set_class(look.folded, "-changed")
        shown.set_class(bool(look.warnings) and not look.folded, "-warned")

    def _kept(self, key: str | None) -> str | None:
        """Where the cursor stays: a normalization that was folded is in its convolution now."""
        pair = self._look.pair(key or "")
        gone = self._look.folded and not self._comparing and pair is not None and self._look.after(key or "") is None
        return pair.conv_node if gone and pair is not None else key

    def _place(self) -> None:
        """Begin at the first pair that can be folded: that is what there is to decide."""
        if self._placed or self._look.pairs is None:
            return
        self._placed = True
        first = next((pair.conv_node for pair in self._look.rows if pair.reason is None), None)
        if first is not None and self._look.traced and self._main_grid.cursor == self._look.traced[0].name:
            self._main_grid.move_to(first)

    def _level(self, other: Grid, y: float) -> None:
        if self._both and round(other.scroll_y) != round(y):
            other.set_scroll(None, round(y))

    def _follow(self, key: str | None) -> None:
        """Put the other table's cursor on the same node."""
        first, second = self._grids
        other = first if second.has_focus else second
        if key is not None and not other.move_to(key) and (pair := self._look.pair(key)):
            other.move_to(pair.conv_node)

    def on_grid_moved(self, event: Grid.Moved) -> None:
        if not event.grid.has_focus and self._both:
            return
        if self._both:
            self._follow(event.key)
        text, at = self._news
        if text and at != self._main_grid.cursor:
            self._news = ("", "")
        self.say(self._sentence())

    def on_grid_chosen(self, event: Grid.Chosen) -> None:
        self.do_detail()

    def on_filter_bar_changed(self, event: FilterBar.Changed) -> None:
        self._paint(self.state)
        self.say(self._sentence())

    def on_screen_suspend(self) -> None:
        if self.qtui.stage_screen is not self:
            self.qtui.hold = False

    def label(self, action: Action) -> str:
        # The footer is drawn before the panes are brought up to date.
        look = Look.of(self.state, self._left)
        if action.id == "fold" and look.phase == "open" and look.foldable:
            return f"fold {len(look.with_fate('fold'))}"
        return action.label

    def back(self) -> None:
        self._bar.clear()

    def do_mark(self) -> None:
        node = self._node()
        pair = self._look.pair(node.name) if node else None
        if node is None or pair is None:
            self.explain("Only pairs can be marked: a convolution or linear layer, and the normalization that reads it (◆ ◇)")
        elif pair.reason is not None:
            self.explain(f"{pair.conv} + {pair.bn} cannot be folded: {pair.reason}")
        else:
            self._left ^= {pair.bn}

    def do_mark_all(self) -> None:
        self._left = frozenset()

    def do_mark_none(self) -> None:
        self._left = frozenset(self._look.foldable)

    def do_fold(self) -> None:
        if not self._look.foldable:
            self.explain("No pair can be folded here: n goes on to the strategy")
            return
        self.qtui.hold = True
        self.session.answer(self._look.answer())

    def do_compare(self) -> None:
        if not self._look.folded:
            self.explain("The fold is being measured: in a moment")
            return
        self._comparing = not self._comparing

    def do_filter(self) -> None:
        self._bar.open()

    def do_detail(self) -> None:
        if (node := self._node()) is None:
            self.explain("There is no node under the cursor")
            return
        self.app.push_screen(Reading(node.name, details(self._look, node, self._before)))

    def do_next(self) -> None:
        self.qtui.hold = False
        if self.state.asking == "optimize":
            self.session.answer(self._look.answer())
        elif self.state.run.draft is not None:
            self.qtui.go("strategy")
        elif self.state.busy:
            self.explain("Not yet: the strategy opens by itself when it is planned")
        else:
            self.explain(f"This run ended before there was a plan: a new run makes one ({digit('model')}, then n)")
