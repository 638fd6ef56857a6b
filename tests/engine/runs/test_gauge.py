"""What a run takes of its machine, told every few seconds while it says something, and in its report."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from typing import Any

from engine.events.event import Ask, Event, MachineUse, Notice
from engine.events.replay import from_dict
from engine.runs.gauge import SECONDS, Gauge, gauged


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(clock: Clock, heard: list[Any]) -> Generator[Event, Any, str]:
    """A second for each line, an hour for an answer."""
    for number in range(8):
        clock.now += 1.0
        heard.append((yield Notice(str(number))))
    heard.append((yield Ask("qat", "Train?")))
    clock.now += 3600.0
    heard.append((yield Notice("last")))
    return "done"


def told() -> tuple[list[Event], list[Any], str]:
    clock, heard, seen = Clock(), [], []
    steps = gauged(run(clock, heard), Gauge(clock))
    answer = None
    while True:
        try:
            event = steps.send(answer)
        except StopIteration as end:
            return seen, heard, end.value
        seen.append(event)
        answer = True if isinstance(event, Ask) else None


def test_a_look_comes_every_few_seconds_and_never_in_the_place_of_an_answer() -> None:
    seen, heard, result = told()
    looks = [event for event in seen if isinstance(event, MachineUse)]
    assert [look.seconds for look in looks] == [SECONDS, 2 * SECONDS, 8.0 + 3600.0]
    assert heard == [None] * 8 + [True, None] and result == "done"
    assert not isinstance(seen[[isinstance(event, Ask) for event in seen].index(True) + 1], MachineUse)


def test_a_look_is_read_back_as_it_was_told() -> None:
    look = next(event for event in told()[0] if isinstance(event, MachineUse))
    assert from_dict(json.loads(json.dumps(look.to_dict()))) == look
    assert look.ranks[0].memory_bytes > 10e6 and look.ranks[0].cores <= (os.cpu_count() or 1)


def test_the_report_tells_the_peak_of_each_rank(main_run: Any) -> None:
    (mine,) = main_run.report.data["resources"]
    assert mine["rank"] == 0 and 100e6 < mine["peak_memory_bytes"] < 64e9
    assert 0 <= mine["mean_busy_cores"] <= mine["cores"] + 1
