"""How the state moves on: ``reduce(state, event)``, pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.events import event as ev
from engine.events.replay import from_dict
from engine.report.measures import FORMS as MEASURED_FORMS
from engine.report.measures import item_of, values_of
from qtui import messages as ms
from qtui.draft import Draft
from qtui.machine_line import KEPT, Look
from qtui.machine_words import moved
from qtui.stage_table import asked_at, ids, of_engine, registry
from qtui.state import Job, LogLine, Run, Stage, State, Status, Training
from qtui.text import tidy

LOG_LINES = 1000
CHART_POINTS = 2000


def reduce(state: State, event: ev.Event, at: float = 0.0) -> State:
    """The state after ``event``, which happened at ``at`` seconds of the app's clock."""
    if isinstance(event, ms.Message):
        return _own(state, event, at)
    state = _logged(state, event, at)
    if isinstance(event, ev.StageFinished) and state.job is not None and state.job.ending:
        state = replace(state, job=replace(state.job, ending=False))
    if state.job is not None and state.job.kind == "train":
        return _baseline(state, event)
    return replace(state, run=_exporting(state.run, event) if state.exporting else _run(state.run, event))


def _own(state: State, event: ms.Message, at: float) -> State:
    match event:
        case ms.JobStarted():
            return _job_started(state, event, at)
        case ms.JobEnded():
            return _job_ended(state, event)
        case ms.Examined():
            return _at_home(replace(state, machine=event.found), at)
        case ms.Problem():
            text = f"{event.what}: {event.next_step}" if event.next_step else event.what
            return replace(_log(state, text, "error", at), problem=event)
        case ms.Dismissed():
            return replace(state, problem=None)
        case ms.RunsListed():
            return replace(state, runs=event.runs, listed=True)
        case ms.Opened():
            return replace(state, run=Run(directory=str(event.directory)), log=())
        case ms.ReportLoaded():
            return _at_home(replace(state, run=_reported(state.run, event.report)), at)
        case ms.Edited():
            return replace(state, run=replace(state.run, draft=event.draft))
        case ms.Trained():
            return replace(state, trained=event.weights)
    return replace(state, job=_job(state.job, event), run=_waiting(state.run, event)) if state.job else state


def _at_home(state: State, at: float) -> State:
    """The state with a warning where the report that is open comes from another machine."""
    told = moved(state.machine, state.run.environment) if state.run.report else ""
    if not told or told in state.run.warnings:
        return state
    return replace(_log(state, told, "warning", at), run=replace(state.run, warnings=(*state.run.warnings, told)))


def _job(job: Job, event: ms.Message) -> Job:
    match event:
        case ms.Asking():
            return replace(job, asking=event.key, default=event.default)
        case ms.Answered():
            return replace(job, asking=None)
        case ms.Stopping():
            return replace(job, ending=True, paused=False) if event.keep else replace(job, stopping=True, paused=False)
        case ms.Paused():
            return replace(job, paused=event.paused)
    return job


def _waiting(run: Run, event: ms.Message) -> Run:
    match event:
        case ms.Asking():
            at = asked_at(event.key) or run.at
            return _moved(run, at, "waiting")
        case ms.Answered(key="optimize"):
            return replace(run, stages={**run.stages, "graph": "running"})
        case ms.Answered(key="quantize"):
            return _moved(run, "calibrate", "running")
        case ms.Answered(key="qat"):
            # The engine's own word comes a moment later; what it did last is over.
            doing = "Getting ready to train" if event.trains else "Finishing"
            return replace(run, stages={**run.stages, "calibrate": "done"}, doing=doing, phase="", progress=None)
    return run


def _job_started(state: State, event: ms.JobStarted, at: float) -> State:
    job = Job(event.kind, event.title, event.model, event.data)
    state = replace(state, job=job, problem=None, _began=at)
    if event.kind in ("run", "resume"):
        # What a resumed run has shown stays until it is shown anew.
        before = state.run if event.kind == "resume" else Run(model=event.model, data=event.data)
        run = replace(before, at="model", stages={"model": "running"}, doing=event.title, stopped=False)
        state = replace(state, run=run, log=())
    if event.kind == "train":
        state = replace(state, baseline=Training(), baseline_progress=None, trained="")
    if event.kind == "export":
        state = replace(state, run=replace(state.run, doing=event.title, progress=None))
    return state


def _job_ended(state: State, event: ms.JobEnded) -> State:
    if state.job is not None and state.job.kind != event.kind:
        # The next job was asked for before this one had ended: a run, while PyTorch is still imported.
        return state
    run = state.run
    if event.kind in ("run", "resume") and event.outcome != "done":
        mark: Status = "failed" if event.outcome == "failed" else "stopped"
        run = replace(run, stages={**run.stages, run.at: mark}, progress=None, stopped=event.outcome == "stopped")
    if event.kind == "export":
        run = replace(run, progress=None, doing="")
    return replace(state, job=None, run=run, baseline_progress=None)


def _logged(state: State, event: ev.Event, at: float) -> State:
    match event:
        case ev.StageStarted():
            return _log(state, event.title, "stage", at)
        case ev.Notice():
            return _log(state, event.text, event.level, at)
        case ev.Finished():
            return _log(state, event.text, "stage", at)
        case ev.Failed():
            return _log(state, event.text, "error", at)
        case ev.EpochFinished():
            text = f"epoch {event.epoch} of {event.epochs}: loss {event.loss:.4f}, validation {event.value:.4f}, lr {tidy(event.lr, '.2g')}"
            return _log(state, f"{text}, best so far" if event.best else text, "info", at)
    return state


def _log(state: State, text: str, level: str, at: float) -> State:
    return replace(state, log=(*state.log[1 - LOG_LINES :], LogLine(text, level, max(at - state._began, 0.0))))


def _baseline(state: State, event: ev.Event) -> State:
    if isinstance(event, ev.Progress):
        return replace(state, baseline_progress=event)
    return replace(state, baseline=trained(state.baseline, event))


def _exporting(run: Run, event: ev.Event) -> Run:
    """A finished run that is exported stays as it is; what its export does now is shown beside it."""
    match event:
        case ev.Progress():
            return replace(run, progress=event)
        case ev.Notice(level="info"):
            return replace(run, doing=event.text, progress=None)
    return run


def _run(run: Run, event: ev.Event) -> Run:  # noqa: C901 - one case an event
    match event:
        case ev.StageStarted():
            stage = of_engine(event.stage) or run.at
            if stage == "calibrate" and run.at == "train":
                stage = "train"
            run = replace(run, doing=event.title, phase=event.stage, progress=None, part=1)
            if event.stage == "sensitivity" and run.stages.get(stage) == "waiting":
                # It is done beside the question, which stays open.
                return run
            return _moved(run, stage, "running")
        case ev.StageFinished():
            return replace(run, progress=None)
        case ev.Progress():
            # A count that begins anew is the next part of the stage: under one name no bar goes back.
            began = run.progress is not None and event.done < run.progress.done
            return replace(run, progress=event, part=run.part + began)
        case ev.Notice(level="warning"):
            return replace(run, warnings=(*run.warnings, event.text)[-50:])
        case ev.Setting():
            recipe = event.recipe
            data = str((recipe.get("data") or {}).get("name", run.data))
            model = str(recipe.get("model", run.model))
            run = replace(run, directory=event.directory, recipe=recipe, environment=event.environment, model=model, data=data)
            return _task_known(run, event.task, event.measures, {"items": event.items}) if event.task else run
        case ev.Graph():
            return replace(run, traced=event.nodes) if event.which == "traced" else replace(run, fused=event.nodes)
        case ev.Pairs():
            return replace(run, pairs=event)
        case ev.Planned():
            draft = run.draft.replanned(event) if run.draft else Draft.of(event)
            return replace(run, plan=event, draft=draft)
        case ev.Weights():
            return replace(run, weights={row.path: row for row in event.rows})
        case ev.Sensitivities():
            return replace(run, sensitivity=event)
        case ev.Inspected():
            return replace(run, inspected={**run.inspected, **{row.path: row for row in event.rows}})
        case ev.Ranges():
            return replace(run, ranges=event)
        case ev.Measured():
            values = {**run.values, event.which: values_of(event.metrics)}
            return replace(run, measured={**run.measured, event.which: event.figures}, values=values)
        case ev.Layers():
            return replace(run, layers={**run.layers, event.which: event.rows})
        case ev.Samples():
            return replace(run, samples=(*(s for s in run.samples if s.prompt != event.prompt), event))
        case ev.Changes():
            return replace(run, changed=event)
        case ev.Judgement():
            return replace(run, judged={**run.judged, event.which: event.verdict})
        case ev.MachineUse():
            look = Look(event, run.progress.rate if run.progress else None)
            return replace(run, machine=(*run.machine, look)[-KEPT:])
        case ev.Step() | ev.EpochFinished():
            return replace(run, training=trained(run.training, event))
        case ev.Ask():
            # A replayed run: what was asked then is not open now.
            return run
        case ev.Finished():
            return replace(run, finished=event, at="report", stages=_all_done(run.measured), doing="", phase="", progress=None)
        case ev.Stopped():
            return replace(run, stopped=True, stages={**run.stages, run.at: "stopped"}, progress=None)
        case ev.Failed():
            return replace(run, stages={**run.stages, run.at: "failed"}, progress=None)
    return run


def _task_known(run: Run, task: str, measures: Any, report: Mapping[str, Any]) -> Run:
    return replace(run, task=task, measures=tuple(measures or ()), item=item_of(report))


def _moved(run: Run, stage: Stage, status: Status) -> Run:
    """The run at ``stage``: what lies before it is done, or was passed over."""
    before: dict[Stage, Status] = {}
    for earlier in registry()[: ids().index(stage)]:
        before[earlier.id] = "skipped" if earlier.form and run.status(earlier.id) == "next" else "done"
    return replace(run, at=stage, stages={**before, stage: status}, stopped=False)


def _all_done(measured: Mapping[str, Any]) -> dict[Stage, Status]:
    """The stages of a run that came to its end: those whose form was not measured were passed over."""
    return {stage.id: "skipped" if stage.form and stage.form not in measured else "done" for stage in registry()}


def _reported(run: Run, report: Mapping[str, Any]) -> Run:
    """A run as its report tells it: figures that no event brought are taken from there."""
    measured = {key: report[key] for key in ("baseline", "ptq", "qat") if report.get(key)}
    chosen = "qat" if "qat" in measured and measured["qat"].get("kept") else "ptq"
    layers = {chosen: tuple(report.get("layers") or ()), **run.layers}
    told = (dict(sample) for sample in report.get("samples") or ())
    samples = run.samples or tuple(ev.Samples(str(sample.pop("prompt", "")), sample) for sample in told)
    told_values = report.get("metrics") or {}
    values = {form: values_of(told_values.get(key)) for key, form, _ in MEASURED_FORMS} if isinstance(told_values, Mapping) else {}
    changed = from_dict({"event": "Changes", **report["changed"]}) if isinstance(report.get("changed"), Mapping) else None
    run = _task_known(run, str(report.get("task") or ""), report.get("measures"), report)
    # A report is the last thing that a run writes, whatever its other files have lost.
    return replace(
        run, report=report, at="report", stages=_all_done(measured), measured={**measured, **run.measured}, layers=layers,
        samples=samples, changed=changed if isinstance(changed, ev.Changes) else run.changed,
        values={form: found for form, found in values.items() if found} or run.values,
        model=run.model or str(report.get("model", "")), data=run.data or str((report.get("data") or {}).get("name", "")),
        environment=run.environment or report.get("environment") or {},
    )  # fmt: skip


def trained(training: Training, event: ev.Event) -> Training:
    """``training`` after an event of it; other events change nothing."""
    match event:
        case ev.Step():
            steps = training.steps
            if event.loss is not None:
                # A resumed run does the steps after its checkpoint again.
                steps = (*(steps if not steps or steps[-1][0] < event.done else _before(steps, event.done)), (event.done, event.loss))
            return replace(training, steps=_thinned(steps), now=event)
        case ev.EpochFinished():
            return replace(training, epochs=(*(e for e in training.epochs if e.epoch < event.epoch), event))
    return training


def _before(steps: tuple[tuple[int, float], ...], done: int) -> tuple[tuple[int, float], ...]:
    return tuple(step for step in steps if step[0] < done)


def _thinned(steps: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    if len(steps) <= CHART_POINTS:
        return steps
    pairs = zip(steps[0::2], steps[1::2], strict=False)
    rest = steps[-1:] if len(steps) % 2 else ()
    return (*((b[0], (a[1] + b[1]) / 2) for a, b in pairs), *rest)
