"""What waits for the screen is bounded, and nothing that matters is lost."""

from __future__ import annotations

import threading

from engine.events import event as ev
from qtui.mailbox import Mailbox


def test_of_progress_only_the_latest_waits_in_its_place_among_the_others() -> None:
    mailbox = Mailbox()
    for done in range(100_000):
        mailbox.post(ev.Progress("calibrate", done, 100_000, "img"))
    mailbox.post(ev.StageFinished("calibrate", 1.0))
    events = [event for _, event in mailbox.drain()]
    assert events == [ev.Progress("calibrate", 99_999, 100_000, "img"), ev.StageFinished("calibrate", 1.0)]
    assert mailbox.drain() == []


def test_progress_of_two_stages_does_not_mix() -> None:
    mailbox = Mailbox()
    for stage in ("a", "b", "a"):
        mailbox.post(ev.Progress(stage, 1, 2, "img"))
    assert [event.stage for _, event in mailbox.drain()] == ["b", "a"]  # type: ignore[attr-defined]


def test_a_flood_of_lines_is_cut_and_says_so_but_results_stay() -> None:
    mailbox = Mailbox()
    mailbox.post(ev.Measured("ptq", {"value": 1.0}))
    for index in range(10_000):
        mailbox.post(ev.Notice(str(index)))
    events = [event for _, event in mailbox.drain()]
    assert len(events) < 600
    assert ev.Measured("ptq", {"value": 1.0}) in events and ev.Notice("9999") in events
    assert any(isinstance(event, ev.Notice) and "9500 lines" in event.text for event in events)


def test_events_from_many_threads_all_arrive_once() -> None:
    mailbox = Mailbox()
    threads = [
        threading.Thread(target=lambda n=n: [mailbox.post(ev.StageFinished(f"{n}", i)) for i in range(500)]) for n in range(8)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    found = []
    while any(thread.is_alive() for thread in threads):
        found += mailbox.drain()
    found += mailbox.drain()
    assert len(found) == 4000 and len({event for _, event in found}) == 4000
