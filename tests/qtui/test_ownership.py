"""Only one process works in a run's folder, and the lock goes with the process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from engine.errors import UsageError
from engine.events import event as ev
from qtui.engine_thread import TorchEngine
from qtui.ownership import owned

HOLDER = """
import sys, time
from pathlib import Path
from qtui.ownership import owned
def steps():
    yield "held"
    time.sleep(60)
work = owned(Path(sys.argv[1]), steps())
print(next(work), flush=True)
time.sleep(60)
"""


def steps() -> Generator[ev.Event, object, str]:
    yield ev.Notice("at work")
    return "done"


def test_two_owners_are_one_too_many_until_the_first_is_done(tmp_path: Path) -> None:
    first = owned(tmp_path, steps())
    next(first)
    with pytest.raises(UsageError, match="at work in another process"):
        next(owned(tmp_path, steps()))
    with pytest.raises(StopIteration):
        next(first)
    assert next(owned(tmp_path, steps())) == ev.Notice("at work")


def test_a_folder_is_free_when_the_process_that_held_it_was_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            with pytest.raises(UsageError):
                next(owned(tmp_path, steps()))
        finally:
            holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert next(owned(tmp_path, steps())) == ev.Notice("at work")


def test_resume_and_export_ask_for_the_folder_first(tmp_path: Path) -> None:
    from engine.events.cancellation import StopToken

    first = owned(tmp_path, steps())
    next(first)
    for begun in (TorchEngine().resume(tmp_path, StopToken()), TorchEngine().export(tmp_path, ["onnx"], StopToken())):
        with pytest.raises(UsageError, match="at work in another process"):
            next(begun)


def test_what_is_not_there_yet_is_not_held(tmp_path: Path) -> None:
    assert next(owned(tmp_path / "new", steps())) == ev.Notice("at work")
    assert not (tmp_path / "new").exists()
