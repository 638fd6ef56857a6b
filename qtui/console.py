"""The headless front end: consumes a run's events, prints them, and answers its questions."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeVar

from engine.events import event as ev
from engine.report.language import protocol
from engine.report.measures import values_of
from engine.tasks.metrics import ACCURACY, Metric, measures
from qtui import text
from qtui.bars import Bars
from qtui.prompts import Prompts
from qtui.screen import Screen

T = TypeVar("T")

_PARAGRAPHS = (ev.StageStarted, ev.Finished, ev.Stopped)


def drive(events: Generator[ev.Event, Any, T], show: Callable[[ev.Event], bool | None]) -> T:
    """Run a generator of events to its end and return what it returns. ``show`` sees each event; its answer is sent back."""
    answer: bool | None = None
    while True:
        try:
            event = events.send(answer)
        except StopIteration as end:
            found: T = end.value
            return found
        answer = show(event)


class Console:
    """Shows events as lines, tables and bars."""

    def __init__(self, screen: Screen, bars: Bars, prompts: Prompts) -> None:
        self._screen, self._bars, self._prompts = screen, bars, prompts
        self._metrics: tuple[Metric, ...] = (ACCURACY,)
        self._told: tuple[Mapping[str, Any], ...] = ()
        self._before: ev.Event | None = None

    def __call__(self, event: ev.Event) -> bool | None:
        if isinstance(event, ev.Progress):
            self._bars.update(event)
            return None
        if isinstance(event, ev.Setting):
            self._told = event.measures
        if isinstance(event, ev.Detail):
            return None
        self._bars.clear()
        if self._begins_a_paragraph(event):
            self._screen.line()
        self._before = event
        return self._show(event)

    def _begins_a_paragraph(self, event: ev.Event) -> bool:
        if self._before is None:
            return False
        after_table = isinstance(self._before, ev.Table)
        return after_table or isinstance(event, _PARAGRAPHS) or (isinstance(event, ev.Ask) and not isinstance(self._before, ev.Ask))

    def _show(self, event: ev.Event) -> bool | None:
        screen = self._screen
        match event:
            case ev.Ask():
                return self._prompts.ask(event)
            case ev.StageStarted():
                self._bars.close()
                screen.line(event.title, "bold")
            case ev.StageFinished():
                screen.line(self._bars.finish(event.seconds), "dim", 2)
            case ev.Notice(level="warning"):
                screen.line(f"warning: {event.text}", "yellow", 2)
            case ev.Notice():
                screen.line(event.text, "", 2)
            case ev.Table():
                screen.table(event.columns, event.rows, event.title)
            case ev.EpochFinished():
                screen.line("  ".join(text.epoch(event, event.metric or self._metrics[0])), "", 2)
            case ev.Measured():
                self._metrics = measures(self._told, str(event.figures.get("metric") or self._metrics[0].name))
                how = event.figures.get("perplexity")
                if how and event.which == "baseline":
                    screen.line(f"perplexity: {protocol(how)}", "", 2)
                values = values_of(event.metrics)
                further = [(metric, values[metric.name]) for metric in self._metrics[1:] if metric.name in values]
                screen.pieces(event.which, text.figures(event.figures, self._metrics[0], further))
            case ev.Finished():
                screen.line(event.text, "bold green" if event.met else "bold yellow")
                screen.line(event.directory, "dim")
            case ev.Stopped():
                self._bars.close()
                screen.line(f"stopped during {event.stage}; go on with: qtui resume {shlex.quote(event.directory)}", "yellow")
        return None
