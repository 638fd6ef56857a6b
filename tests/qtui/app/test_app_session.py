"""Commands reach the engine's thread and its events come back, without a terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scripted_engine import Gate, ScriptedEngine

from engine.errors import EngineError, UsageError
from qtui.engine_thread import problem
from qtui.session import Session
from qtui.state import State

RECIPE = {"model": "simplecnn", "data": {"name": "digits"}}


@pytest.fixture
def sessions() -> Iterator[Callable[[ScriptedEngine], Session]]:
    made: list[tuple[Session, ScriptedEngine]] = []

    def make(engine: ScriptedEngine) -> Session:
        made.append((Session(engine), engine))
        return made[-1][0]

    yield make
    for session, engine in made:
        for gate in engine.gates:
            gate.opened.set()
        assert session.close(10)


def until(session: Session, true: Callable[[State], object], seconds: float = 40) -> State:
    end = time.monotonic() + seconds
    while not true(session.state):
        assert time.monotonic() < end, session.state
        session.pump()
        time.sleep(0.005)
    return session.state


def test_a_run_goes_from_question_to_question_to_its_report(sessions: Callable[[ScriptedEngine], Session], runs: Path) -> None:
    engine = ScriptedEngine(runs)
    session = sessions(engine)
    session.start(RECIPE)
    for key in ("optimize", "quantize", "qat"):
        until(session, lambda state, key=key: state.asking == key)
        session.answer(key != "qat")
    state = until(session, lambda state: state.job is None)
    assert state.run.report is not None and engine.answers == {"optimize": True, "quantize": True, "qat": False}
    assert [run.state for run in state.runs] == ["finished"]


def test_stopping_at_a_question_ends_the_run_and_leaves_one_to_resume(sessions: Callable[[ScriptedEngine], Session], runs: Path) -> None:
    engine = ScriptedEngine(runs)
    session = sessions(engine)
    session.start(RECIPE)
    until(session, lambda state: state.asking == "quantize" or (state.asking == "optimize" and session.answer(True)))
    session.stop()
    state = until(session, lambda state: state.job is None)
    assert state.run.stopped and state.runs[0].state == "cancelled"
    session.resume(state.runs[0])
    assert until(session, lambda state: state.run.report).run.finished is not None
    assert [kind for kind, _ in engine.calls] == ["run", "resume"]


def test_an_answer_for_an_earlier_job_does_not_reach_a_later_one(sessions: Callable[[ScriptedEngine], Session], runs: Path) -> None:
    engine = ScriptedEngine(runs)
    session = sessions(engine)
    session.start(RECIPE)
    until(session, lambda state: state.asking == "optimize")
    old = session._token
    session.stop()
    until(session, lambda state: state.job is None)
    engine.answers.clear()
    session.start(RECIPE)
    until(session, lambda state: state.asking == "optimize")
    assert old is not None
    session._thread.answer(old, False)
    time.sleep(0.1)
    session.pump()
    assert session.state.asking == "optimize" and "optimize" not in engine.answers


def test_keeping_the_best_ends_training_and_goes_on_to_the_report(sessions: Callable[[ScriptedEngine], Session], runs: Path) -> None:
    gate = Gate("epoch 2 part 1")
    engine = ScriptedEngine(runs, gates=(gate,))
    session = sessions(engine)
    session.start(RECIPE)
    for key in ("optimize", "quantize", "qat"):
        until(session, lambda state, key=key: state.asking == key)
        session.answer(True)
    assert gate.reached.wait(10)
    session.enough()
    assert session.state.job is not None and session.state.job.ending and not session.state.job.stopping
    gate.opened.set()
    state = until(session, lambda state: state.run.report)
    assert [epoch.epoch for epoch in state.run.training.epochs] == [1, 2] and state.run.finished is not None


@pytest.mark.parametrize(
    ("error", "what", "step"),
    [
        (UsageError("model 'x' is not known: simplecnn is"), "model 'x' is not known", "simplecnn is"),
        (EngineError("OutOfMemoryError during calibrate: boom: lower data.batch in the recipe; the traceback is in /r/t.txt"),
         "OutOfMemoryError during calibrate: boom", "lower data.batch in the recipe"),
        (MemoryError("no room"), "MemoryError during run: no room", "look at the traceback"),
        (SystemExit(3), "SystemExit during run: 3", "look at the traceback"),
    ],
)  # fmt: skip
def test_a_failure_becomes_a_problem_and_the_thread_lives_on(
    sessions: Callable[[ScriptedEngine], Session], runs: Path, error: BaseException, what: str, step: str
) -> None:
    engine = ScriptedEngine(runs, fail={"fuse": error})
    session = sessions(engine)
    session.start(RECIPE)
    until(session, lambda state: state.asking == "optimize")
    session.answer(True)
    state = until(session, lambda state: state.job is None)
    assert state.problem is not None and (state.problem.what, state.problem.next_step) == (what, step)
    assert state.run.status("graph") == "failed" and state.log[-1].level == "error"
    engine.fail.clear()
    session.start(RECIPE)
    assert until(session, lambda state: state.asking == "optimize").problem is None


def test_a_traceback_that_was_named_is_shown_apart() -> None:
    found = problem(EngineError("X during fuse: y: use other weights; the traceback is in runs/a b/traceback.txt"))
    assert found.traceback == "runs/a b/traceback.txt" and found.next_step == "use other weights"


def test_closing_stops_work_and_ends_the_thread_soon(runs: Path) -> None:
    gate = Gate("calibrate 128")
    session = Session(ScriptedEngine(runs, gates=(gate,)))
    session.start(RECIPE)
    for key in ("optimize", "quantize"):
        until(session, lambda state, key=key: state.asking == key)
        session.answer(True)
    assert gate.reached.wait(10)
    start = time.monotonic()
    assert session.close(5) and time.monotonic() - start < 3
    assert not [thread for thread in threading.enumerate() if thread.name == "engine" and thread is session._thread._thread]


def test_closing_right_after_starting_does_not_wait_for_an_answer(runs: Path) -> None:
    for pause in (0.0, 0.0005, 0.002, 0.005):
        session = Session(ScriptedEngine(runs))
        session.start(RECIPE)
        time.sleep(pause)
        assert session.close(5)


def test_a_folder_that_is_no_run_is_a_problem(sessions: Callable[[ScriptedEngine], Session], tmp_path: Path, runs: Path) -> None:
    session = sessions(ScriptedEngine(runs))
    session.open(tmp_path / "nowhere")
    assert session.state.problem is not None and "nowhere" in session.state.problem.what


def test_a_run_begun_before_anything_else_looks_at_the_machine_first(sessions: Callable[[ScriptedEngine], Session], runs: Path) -> None:
    session = sessions(ScriptedEngine(runs))
    session.start(RECIPE)
    session.examine()
    state = until(session, lambda state: state.asking == "optimize")
    assert state.machine is not None and state.job is not None and state.job.kind == "run"
    session.answer(True)
    assert until(session, lambda state: state.asking == "quantize").run.fused


def test_an_answer_ends_a_pause(sessions: Callable[[ScriptedEngine], Session], runs: Path) -> None:
    session = sessions(ScriptedEngine(runs))
    session.start(RECIPE)
    until(session, lambda state: state.asking == "optimize")
    # Pressed just before the question was known: nothing on a question's screen would go on again.
    session.pause()
    session.answer(True)
    assert session.state.job is not None and not session.state.job.paused
    until(session, lambda state: state.asking == "quantize")
