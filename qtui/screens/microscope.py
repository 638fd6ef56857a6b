"""One layer under the microscope: over the strategy as it is edited, over the report as it was measured."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Container

from engine.events.rows import RoundedLayer
from engine.recipe.decisions import Inspect
from engine.recipe.spec import LayerSpec
from qtui import text
from qtui.drawing.histogram import histogram
from qtui.drawing.microscope import channels, rounding
from qtui.drawing.sheet import note
from qtui.painting import titles
from qtui.screens import microscope_words as words
from qtui.screens.base import bindings
from qtui.screens.over import Over
from qtui.state import State
from qtui.widgets.chart import Chart
from qtui.widgets.sentence import Sentence

_WHERE = "microscope"
_ABOUT = (
    "One layer's weights before and after rounding, as parts of the end of the grid that each is rounded on: ┴ are the grid's levels. "
    "Below, its channels from the widest to the narrowest, and what the layer reads on calibration items, with the ends of its grid.\n\n"
)


class Microscope(Over):
    """Over a stage's screen; ``path`` is the layer that is looked at."""

    where = _WHERE
    about = _ABOUT
    BINDINGS = bindings(_WHERE)
    DEFAULT_CSS = """
    Microscope {
        #lenses { layout: grid; grid-size: 1 3; grid-rows: 3fr 2fr 2fr; height: 1fr; }
        &.-wide #lenses { grid-size: 2 2; grid-rows: 1fr; }
        &.-wide #rounding { row-span: 2; }
        .lens { border: round $border-blurred; border-title-color: $text-muted; padding: 0 1; height: 100%; }
        #rounding { border: round $border; border-title-style: bold; border-title-color: $foreground; }
    }
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self._asked: set[tuple[str, LayerSpec]] = set()

    def compose_body(self) -> ComposeResult:
        with Container(id="lenses"):
            yield Chart(id="rounding", classes="lens")
            yield Chart(id="channels", classes="lens")
            yield Chart(id="values", classes="lens")

    def paths(self) -> tuple[str, ...]:
        """The layers that can be looked at, in the order of the graph."""
        draft = self.state.run.draft
        return tuple(row.path for row in draft.plan.layers if words.wanted(draft, row.path)) if draft is not None else ()

    def found(self, state: State) -> RoundedLayer | None:
        """What is known of the layer."""
        return state.run.inspected.get(self.path)

    def update(self, state: State) -> None:
        found = self.found(state)
        run, values = state.run, words.values_of(state.run, self.path)
        row = run.draft.layer(self.path) if run.draft is not None else None
        waiting = f"{state.work} …" if state.busy and state.run.phase == "inspect" else words.NOT_KEPT
        weights, strip, reads = (self.query_one(f"#{name}", Chart) for name in ("rounding", "channels", "values"))
        name = text.in_block(self.path)
        if found is None:
            titles(weights, f"{name} ─ weights")
            titles(strip, "channels")
            weights.show(lambda width, height: note(waiting if len(waiting) <= width else "nothing was kept of it", width, height))
            strip.show(lambda width, height: note("", width, height))
        else:
            titles(weights, f"{name} ─ {words.weights_title(found)}")
            titles(strip, words.channels_title(found))
            before, after = ((bins.start, bins.width, bins.counts) for bins in (found.before, found.after))
            weights.show(lambda width, height: rounding(before, after, found.ticks, width, height))
            high = words.STANDS_OUT * found.median
            strip.show(lambda width, height: channels(found.lows, found.highs, found.median, high, width, height))
        titles(reads, words.values_title(values))
        if values is None:
            reads.show(lambda width, height: note("what it reads was not looked at", width, height))
        else:
            bins, clips = values.bins, (values.clip_low, values.clip_high)
            reads.show(
                lambda width, height: histogram(bins.start, bins.width, bins.counts, width, height, clip_low=clips[0], clip_high=clips[1])
            )
        self.query_one(Sentence).keep(words.sentence(found, values, row) if found is not None else waiting)

    def do_earlier(self) -> None:
        self._step(-1)

    def do_later(self) -> None:
        self._step(1)

    def _step(self, by: int) -> None:
        paths = self.paths()
        place = paths.index(self.path) + by if self.path in paths else 0
        if not 0 <= place < len(paths):
            self.explain("This is the last layer" if by > 0 else "This is the first layer")
        else:
            self.path = paths[place]


class StrategyMicroscope(Microscope):
    """A layer as the draft has it: the run is asked to look at it while it waits at its strategy."""

    stage = "strategy"

    def update(self, state: State) -> None:
        draft = state.run.draft
        spec = words.wanted(draft, self.path) if draft is not None else None
        asked = (self.path, spec) if spec is not None else None
        known = words.same(self.found(state), spec) and self.found(state).values is not None  # type: ignore[union-attr]
        if asked is not None and asked not in self._asked and not known and state.asking == "quantize":
            self._asked.add(asked)
            self.session.answer(Inspect(*asked))
        super().update(self.state)


class ReportMicroscope(Microscope):
    """A layer as it was measured."""

    stage = "report"
