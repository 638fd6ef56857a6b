"""What is said of the machine while work runs: as wide as there is room, and of all ranks."""

from __future__ import annotations

import pytest

from engine.events.event import MachineUse, Usage
from qtui.drawing.sparkline import sparkline
from qtui.machine_line import KEPT, Look, machine_line
from qtui.reducer import reduce
from qtui.state import State


def looks(ranks: int = 1, count: int = 20, gpu: float | None = None) -> list[Look]:
    found = []
    for at in range(count):
        uses = tuple(
            Usage(rank, "host", 0.1 * at, 2.0, 400_000_000 + at * 10_000_000, 10**9, 3_000_000, gpu, 12_300_000_000 if gpu else None)
            for rank in range(ranks)
        )
        found.append(Look(MachineUse(3.0 * at, uses), 100.0 * at))
    return found


def test_a_line_of_blocks_ends_with_the_latest_figure() -> None:
    assert sparkline([0.0, 4.0, 8.0], 2) == "▅█" and sparkline([None, 8.0], 5) == " █"
    assert sparkline([float("nan"), 0.0], 5) == " ▁" and sparkline([], 5) == "" and sparkline([1.0], 0) == ""


@pytest.mark.parametrize("width", range(0, 160, 3))
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_the_line_is_never_wider_than_its_room(width: int, ranks: int) -> None:
    assert len(machine_line(looks(ranks, gpu=0.43), width)) <= width


def test_one_process_tells_all_that_there_is_room_for() -> None:
    line = machine_line(looks(gpu=0.43), 150)
    assert "1.9 of 2" in line and "590 MB" in line and "43% 12.30 GB" in line and "rate ▄" in line and "3 MB written" in line
    narrow = machine_line(looks(), 40)
    assert narrow.startswith("CPU") and "590 MB" in narrow
    assert machine_line([], 80) == ""


def test_ranks_stand_side_by_side_and_those_without_room_are_told_to_be_there() -> None:
    assert machine_line(looks(2), 76).count("1.9 CPU 590 MB") == 2
    assert machine_line(looks(8), 76).endswith("…") and "rank 0" in machine_line(looks(8), 76)


def test_the_state_keeps_the_last_looks_alone() -> None:
    state = State()
    for look in looks(count=KEPT + 7):
        state = reduce(state, look.use)
    assert len(state.run.machine) == KEPT and state.run.machine[-1].use.seconds == 3.0 * (KEPT + 6)
