"""The budget of the strategy: a strip of plans below the table, which shows the one under its cursor before it is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from engine.errors import one_line
from engine.recipe.decisions import Sensitive
from engine.recipe.targets import Target
from qtui import budget
from qtui.draft import Draft
from qtui.screens import budget_words as words
from qtui.screens.base import StageScreen
from qtui.screens.sensitivity_rows import known
from qtui.stage_table import digit
from qtui.state import State
from qtui.widgets.budget_strip import BudgetStrip
from qtui.widgets.lines import Piece
from qtui.widgets.sentence import Sentence

T = TypeVar("T")

_ESTIMATING = "What each layer costs is being estimated …"
_SOLVING = "Plans are being looked for …"
_UNKNOWN = "What a plan loses is told by what layers were measured to lose"


class Budget(StageScreen):
    """To be mixed into the screen of the strategy, which shows the draft and says what became of it."""

    _front: budget.Front | None = None
    _front_of: tuple[object, ...] = ()
    _solving = 0
    _wants_points = False

    if TYPE_CHECKING:

        @property
        def _draft(self) -> Draft | None: ...

        def _change(self, draft: Draft, note: str = "", news: str = "") -> None: ...

        def _paint(self, state: State) -> bool: ...

        def _settle(self) -> None: ...

    @property
    def strip(self) -> BudgetStrip:
        return self.query_one(BudgetStrip)

    def do_budget(self) -> None:
        """Open the strip; where nothing is estimated yet, have it estimated."""
        if self.state.run.sensitivity is None:
            if self.state.asking != "quantize":
                self.explain(
                    f"Plans are found by estimates, which a run makes while it waits at its strategy: start one ({digit('model')}, then n)"
                )
                return
            self.session.answer(Sensitive())
        self.strip.display, self.leads = True, False
        self.strip.focus()
        self._budget(self.state)

    @property
    def shown_plan(self) -> Draft | None:
        """The draft that is looked at and not taken; None where the run's own is shown."""
        if not self.strip.display or self.strip.chosen is None or self._front is None:
            return None
        return self.strip.chosen.draft

    def shown(self, state: State) -> State:
        """The state with the plan under the strip's cursor in the place of the draft."""
        plan = self.shown_plan
        return state if plan is None else replace(state, run=replace(state.run, draft=plan))

    def _budget(self, state: State) -> None:
        """Bring the strip up to the state: another draft, or other estimates, have other plans."""
        if not self.strip.display:
            return
        draft, found = state.run.draft, state.run.sensitivity
        if draft is None or found is None:
            self._front, self._front_of = None, ()
            self.strip.plans(None, _ESTIMATING if state.busy else "Nothing is estimated.")
            return
        about = (draft, found)
        if len(self._front_of) == 2 and self._front_of[0] is draft and self._front_of[1] is found:
            return
        last = self._front_of[0] if self._front_of else None
        self._front_of = about
        if last is draft and self._front is not None and self._wants_points:
            # The same layers with more of them measured: what was typed can be answered now.
            self._wants_points = False
            self._meet()
            return
        self._front = None
        self.strip.plans(None, _SOLVING)

        def found_front(front: budget.Front) -> None:
            if self._front_of is about:
                self._front = front
                self.strip.plans(front, "No layer can become anything else: marked layers, and those of the recipe's rules, stay.")
                self._meet()
                self.show(self.state)

        self._apart(partial(budget.front_of, draft, known(found)), found_front)

    def _apart(self, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Do what takes long beside the screen, and go on with what came of it."""
        self._solving += 1

        def done(value: T | None, why: str) -> None:
            self._solving -= 1
            if value is None:
                self.strip.plans(None, "No plan could be found.")
                self.explain(f"No plan could be found: {why}")
            else:
                then(value)

        def run() -> None:
            try:
                value, why = work(), ""
            except (ArithmeticError, ValueError, LookupError, RuntimeError, OSError, ImportError) as error:
                self.app.call_from_thread(done, None, one_line(error, 120))
            else:
                self.app.call_from_thread(done, value, why)

        self.run_worker(run, thread=True)

    def _meet(self) -> None:
        """Put the cursor on the plan that keeps the limit that is typed."""
        front, draft, found = self._front, self._draft, self.state.run.sensitivity
        limit = budget.limit_of(self.strip.limit, self.state.run.metric)
        if isinstance(limit, str):
            self.explain(limit)
        elif limit is not None and front is not None and draft is not None and found is not None:
            slope = budget.slope_of(self.state.run, found, known(found))
            if limit.kind == "drop" and slope is None:
                self._measure(limit)
                return
            self._apart(lambda: budget.within(draft, front, limit, slope), self._met)

    def _met(self, plan: budget.Plan | str) -> None:
        if isinstance(plan, str):
            self.explain(plan)
            return
        self.strip.point(plan)
        self.query_one(Sentence).forget()
        self.show(self.state)

    def _measure(self, limit: Target) -> None:
        """Have the worst layers measured: points need something that was measured."""
        found = self.state.run.sensitivity
        wanted = budget.to_measure(found) if found is not None and self.state.asking == "quantize" else ()
        if not wanted or (found is not None and found.measured):
            self.explain(f"{_UNKNOWN}: nothing was lost in what was measured, so that points cannot be predicted")
            return
        self._wants_points = True
        self.session.answer(Sensitive(wanted))
        self.explain(f"{_UNKNOWN}: {len(wanted)} of the worst are being measured on validation")

    def key_pieces(self, state: State, width: int) -> list[Piece]:
        if not (self.is_mounted and self.strip.display and self.strip.has_focus):
            return super().key_pieces(state, width)
        shown = (("←→", "along the front"), ("0-9", "a limit"), ("esc", "back"), ("⏎", "take it ▸"))
        return [piece for key, label in shown for piece in ((f" {key} ", "key"), (f"{label}  ", ""))]

    def budget_sentence(self) -> str:
        """What the strip's cursor is on."""
        front, found = self._front, self.state.run.sensitivity
        if front is None or found is None:
            return self.strip.waiting
        chosen = self.strip.chosen
        slope = budget.slope_of(self.state.run, found, known(found)) if chosen else None
        lost = f" (about {self.state.run.metric.by(slope * chosen.harm)})" if chosen and slope is not None else ""
        return words.sentence(front, chosen, lost)

    def on_budget_strip_walked(self, event: BudgetStrip.Walked) -> None:
        self.query_one(Sentence).forget()
        self.show(self.state)

    def on_budget_strip_typed(self, event: BudgetStrip.Typed) -> None:
        self.query_one(Sentence).forget()
        self._meet()

    def on_budget_strip_taken(self, event: BudgetStrip.Taken) -> None:
        front, plan, draft = self._front, self.strip.chosen, self._draft
        if self._solving:
            self.explain("The plan is being looked for: ⏎ takes it in a moment")
        elif plan is None or front is None or draft is not front.now.draft:
            self.explain("No plan is under the cursor: ← and → go to one, or type a limit")
        elif plan.draft is draft:
            self.explain("This is the plan as it is: ← and → go to others")
        else:
            self._close_budget()
            self._change(plan.draft)
            self.explain(words.taken(front, plan))

    def on_budget_strip_closed(self, event: BudgetStrip.Closed) -> None:
        self._close_budget()
        self.show(self.state)

    def _close_budget(self) -> None:
        strip = self.strip
        had_focus = strip.has_focus
        strip.point(None)
        strip.limit = ""
        strip.display, self.leads = False, True
        self._front, self._front_of = None, ()
        if had_focus:
            self._settle()
