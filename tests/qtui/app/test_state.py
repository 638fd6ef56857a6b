"""The state moves as the engine's events say, whatever front end made them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_engine import MACHINE, NODES, ScriptedEngine, report

from engine.events import event as ev
from engine.events import replay
from engine.events.cancellation import StopToken
from engine.recipe.decisions import Answer, Fold
from qtui import messages as ms
from qtui.reducer import CHART_POINTS, LOG_LINES, reduce, trained
from qtui.screens import calibrate_work
from qtui.stage_table import ids
from qtui.state import Job, State, Training
from qtui.subject import doing


def fed(state: State, events: Iterable[ev.Event]) -> State:
    for event in events:
        state = reduce(state, event)
    return state


def played(engine: ScriptedEngine, answers: dict[str, Answer]) -> list[ev.Event]:
    """All events of a run, with the app's messages around its questions."""
    steps = engine.run({"model": "simplecnn", "data": {"name": "digits"}}, StopToken())
    found: list[ev.Event] = [ms.JobStarted("run", "loading", "simplecnn", "digits")]
    answer: Answer = None
    while True:
        try:
            event = steps.send(answer)
        except StopIteration as end:
            return [*found, ms.ReportLoaded(end.value.data), ms.JobEnded("run", "done")]
        found.append(event)
        answer = None
        if isinstance(event, ev.Ask):
            answer = answers.get(event.key, True)
            found += [ms.Asking(event.key, event.default), ms.Answered(event.key)]


def until(events: list[ev.Event], kind: type[ev.Event], key: str = "") -> list[ev.Event]:
    """The events up to and with the first of that kind."""
    for index, event in enumerate(events):
        if isinstance(event, kind) and (not key or getattr(event, "key", "") == key):
            return events[: index + 1]
    raise AssertionError(kind)


def test_a_whole_run_ends_with_every_stage_done_and_its_figures(tmp_path: Path) -> None:
    state = fed(State(), played(ScriptedEngine(tmp_path), {}))
    assert [state.run.status(stage) for stage in ids()] == ["done"] * 6
    assert state.run.at == "report" and state.job is None and not state.busy
    assert set(state.run.measured) == {"baseline", "ptq", "qat"} and set(state.run.layers) == {"ptq", "qat"}
    assert state.run.ranges is not None and state.run.ranges.final
    assert state.run.report is not None and state.run.finished is not None


def test_training_that_was_declined_is_skipped(tmp_path: Path) -> None:
    state = fed(State(), played(ScriptedEngine(tmp_path), {"qat": False}))
    assert state.run.status("train") == "skipped" and state.run.status("report") == "done"


@pytest.mark.parametrize(
    ("key", "stage"), [("optimize", "graph"), ("quantize", "strategy"), ("qat", "calibrate")]
)  # fmt: skip
def test_a_question_waits_at_the_stage_that_can_answer_it(tmp_path: Path, key: str, stage: str) -> None:
    events = until(played(ScriptedEngine(tmp_path), {}), ms.Asking, key)
    state = fed(State(), events)
    assert state.asking == key and state.run.at == stage and state.run.status(stage) == "waiting"  # type: ignore[arg-type]
    assert state.run.status("report") == "next"
    assert all(state.run.status(earlier) == "done" for earlier in ids()[: ids().index(stage)])


def test_measuring_the_trained_model_belongs_to_training(tmp_path: Path) -> None:
    events = played(ScriptedEngine(tmp_path), {})
    last = max(i for i, event in enumerate(events) if isinstance(event, ev.StageStarted) and event.stage == "evaluate")
    assert fed(State(), events[: last + 1]).run.at == "train"


def test_a_fold_of_one_pair_leaves_the_other_node(tmp_path: Path) -> None:
    state = fed(State(), played(ScriptedEngine(tmp_path), {"optimize": Fold(("bn1",))}))
    assert len(state.run.fused) == len(NODES) - 1 and state.run.pairs is not None
    assert [pair.max_abs_delta is not None for pair in state.run.pairs.pairs] == [True, False, False]


@pytest.mark.parametrize(("outcome", "mark"), [("failed", "failed"), ("stopped", "stopped")])
def test_a_run_that_ends_early_is_marked_where_it_was(tmp_path: Path, outcome: str, mark: str) -> None:
    events = until(played(ScriptedEngine(tmp_path), {}), ev.Ranges)
    state = fed(State(), [*events, ms.JobEnded("run", outcome)])  # type: ignore[arg-type]
    assert state.run.status("calibrate") == mark and state.run.status("strategy") == "done" and not state.busy


def test_replaying_the_journal_rebuilds_what_was_seen(tmp_path: Path) -> None:
    engine = ScriptedEngine(tmp_path)
    seen = fed(State(), played(engine, {})).run
    directory = Path(seen.directory)
    again = fed(State(), [ms.Opened(directory), *replay.read(directory)]).run
    assert again.training == seen.training and again.measured == seen.measured and again.layers == seen.layers
    assert again.traced == seen.traced and again.stages == seen.stages and again.weights == seen.weights
    assert again.plan == seen.plan and again.ranges == seen.ranges and again.at == "report"


def test_steps_that_are_done_again_after_a_resume_replace_the_old_ones() -> None:
    steps = [ev.Step("qat", 1, 2, done, 20, 1 / done, 0.1) for done in (2, 4, 6, 8)]
    training = Training()
    for step in [*steps, replace(steps[1], loss=0.5)]:
        training = trained(training, step)
    assert training.steps == ((2, 0.5), (4, 0.5)) and training.now is not None and training.now.done == 4


def test_charts_and_log_stay_bounded() -> None:
    training = Training()
    for done in range(1, 3 * CHART_POINTS):
        training = trained(training, ev.Step("qat", 1, 1, done, 10**6, float(done), 0.1))
    assert len(training.steps) <= CHART_POINTS and training.steps[-1][0] == 3 * CHART_POINTS - 1
    assert [s[0] for s in training.steps] == sorted({s[0] for s in training.steps})
    state = fed(State(), (ev.Notice(str(i)) for i in range(LOG_LINES + 10)))
    assert len(state.log) == LOG_LINES and state.log[-1].text == str(LOG_LINES + 9)


def test_training_a_baseline_does_not_touch_the_run(tmp_path: Path) -> None:
    run = fed(State(), played(ScriptedEngine(tmp_path), {}))
    events: list[ev.Event] = [ms.JobStarted("train", "training"), *ScriptedEngine(tmp_path).train("simplecnn", "digits", StopToken())]
    state = fed(run, events)
    assert state.run == run.run and len(state.baseline.epochs) == 3 and state.busy
    state = fed(state, [ms.Trained("weights.safetensors"), ms.JobEnded("train", "done")])
    assert state.trained == "weights.safetensors" and not state.busy


def test_a_run_begun_while_pytorch_is_imported_outlasts_the_end_of_that(tmp_path: Path) -> None:
    state = fed(State(), [ms.JobStarted("examine", "starting PyTorch"), ms.JobStarted("run", "loading", "simplecnn", "digits")])
    state = fed(state, [ms.Examined({}), ms.JobEnded("examine", "done")])
    assert state.busy and state.job is not None and state.job.kind == "run"


def test_a_report_from_another_machine_is_told_of_whichever_is_known_first(tmp_path: Path) -> None:
    made = {**report("runs/a"), "environment": {"isa": "AVX2", "vnni": False}}
    opened: list[ev.Event] = [ms.Opened(tmp_path), ms.ReportLoaded(made)]
    for order in ([ms.Examined(MACHINE), *opened], [*opened, ms.Examined(MACHINE)]):
        state = fed(State(), order)
        (told,) = state.run.warnings
        assert "a machine with AVX2, no VNNI" in told and "AVX512, VNNI" in told
        assert [line.text for line in state.log if line.level == "warning"] == [told]
    assert fed(State(), [ms.Examined(MACHINE), ms.Opened(tmp_path), ms.ReportLoaded(report("runs/a"))]).run.warnings == ()


@pytest.mark.parametrize(("trains", "doing"), [(True, "Getting ready to train"), (False, "Finishing")])
def test_an_answer_ends_what_was_said_of_the_measurement(trains: bool, doing: str) -> None:
    measuring = (ev.StageStarted("evaluate", "Measuring"), ev.Progress("evaluate", 1, 9, "img"), ms.Asking("qat", True))
    run = fed(State(), (ms.JobStarted("run", "loading", "net", "digits"), *measuring, ms.Answered("qat", trains))).run
    assert (run.doing, run.progress, run.phase) == (doing, None, "")


def test_no_bar_goes_back_under_the_same_name() -> None:
    state = reduce(State(job=Job("run", "running")), ev.StageStarted("evaluate", "Measuring"))
    shown: dict[str, int] = {}
    for done in (10, 60, 100, 5, 40, 100, 20):
        state = reduce(state, ev.Progress("evaluate", done, 100, "img"))
        name = calibrate_work.title(state).partition(f" ─ {done}")[0]
        assert done >= shown.get(name, 0)
        shown[name] = done
    assert list(shown) == ["Measuring", "Measuring ─ part 2", "Measuring ─ part 3"]
    assert doing(state) == "part 3, 20 %"
    timing = reduce(state, ev.Progress("evaluate", 1, 12, "timings"))
    assert calibrate_work.title(timing) == "Measuring ─ part 4 ─ timing ─ 1 of 12"
    state = reduce(state, ev.StageStarted("plan", "Planning"))
    assert state.run.part == 1
