"""A run from its recipe to its folder: started, resumed, stopped, failed. The stages themselves are in ``job``."""

from __future__ import annotations

import contextlib
import tempfile
import traceback
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.errors import Cancelled, EngineError, UsageError, one_line
from engine.events.cancellation import StopToken
from engine.events.event import Ask, Event, Failed, Notice, StageStarted, Stopped
from engine.events.replay import read
from engine.kernels.probe import probe
from engine.lowering.sensitivity import STATE as MEASURED
from engine.machine import ranks
from engine.machine.device import pick_device
from engine.models.custom import is_custom
from engine.models.registry import Stem, find
from engine.models.text_registry import ENTRIES as TEXT_MODELS
from engine.planning.plan import Plan
from engine.recipe.decisions import Answer
from engine.recipe.recipe import Recipe
from engine.report.report import Report
from engine.runs import exporting, fits
from engine.runs.absolute import absolute
from engine.runs.gauge import gauged
from engine.runs.job import CHECKPOINT, Job
from engine.runs.place import Place
from engine.runs.rundir import Elsewhere, RunDir, find_run, is_running, new_directory, runs_root
from engine.runs.work import Run, T, stage
from engine.tasks import fitting
from engine.tasks.base import Task
from engine.tasks.registry import OWN, TaskEntry, task_of
from engine.tasks.subject import Subject

IN_MEMORY = "in memory: "
_FOLDER = "folder"


def run(
    recipe: Recipe, out: Path | None, stop: StopToken, attended: bool = False, in_hand: tuple[nn.Module, Task] | None = None
) -> Run[Report]:
    """Carry out ``recipe`` in ``out`` (a new folder below ``runs_root()`` by default).

    Yields events; answer an ``Ask`` with ``send``. ``attended`` means that a person decides at a screen: training is
    offered where the threshold is met too, and more is measured on the way. ``in_hand`` are a model and a task that are in memory: the
    recipe then only names them. Raises UsageError or EngineError in one
    line, and Cancelled once the state is saved. Before loading has succeeded nothing is written.
    """
    ranks.join()
    begun = ranks.called_by_first(lambda: _begun_before(recipe, out))
    if begun is not None and ranks.called_by_first((begun / "report.json").exists):
        yield Notice(f"{begun} was finished before its ranks were started again")
        return ranks.called_by_first(lambda: Report.load(begun))
    if begun is not None:
        return (yield from resume(begun, stop, attended))
    return (yield from _guarded(recipe, out, stop, resumed=False, attended=attended, in_hand=in_hand))


def _begun_before(recipe: Recipe, out: Path | None) -> Path | None:
    """The folder of this very run where its ranks were started again, as ``torchrun --max-restarts`` does; else None."""
    if ranks.place().attempt == 0 or recipe.model.startswith(IN_MEMORY):
        return None
    known = ranks.remembered(_FOLDER)
    directory = out or (Path(known) if known else None)
    return directory if directory and (directory / "recipe.yaml").exists() else None


def dry_run(recipe: Recipe, out: Path | None, stop: StopToken) -> Run[Plan]:
    """Load and plan, and tell what a run in ``out`` would take; nothing is kept. What is asked on the way is agreed to. Raises as ``run``
    does for whatever can be told by now."""
    entry = task_of(recipe.model, recipe.task)
    fits.check(recipe, entry.reads)
    recipe, device = entry.settled(recipe), pick_device(recipe.device)
    subject = yield from _loaded(recipe, entry, entry.load(recipe, stop, device))
    recipe = subject.task.settled(recipe)
    with tempfile.TemporaryDirectory() as place:
        where = RunDir(Path(place) / "run", recipe.model, subject.task.data(1, None)["name"], 0)
        steps = Job(recipe, subject, probe(), where, stop).planned(out or runs_root())
        try:
            answer: Answer = None
            while True:
                event = steps.send(answer)
                answer = True if isinstance(event, Ask) else (yield event)
        except StopIteration as end:
            yield Notice("nothing was run and nothing is kept: leave --dry-run out to run it")
            return end.value  # type: ignore[no-any-return]
        finally:
            where.close()


def resume(directory: Path, stop: StopToken, attended: bool = False) -> Run[Report]:
    """Go on with a run that was stopped: the model is traced, planned and rounded again, which takes seconds; calibration and
    measuring that were done are taken from its folder, and training continues at the step where it was. What was agreed to is not asked
    again."""
    ranks.join()
    place = directory
    directory, recipe, open_ = ranks.called_by_first(lambda: _left_off(place))
    steps = _guarded(recipe, directory, stop, resumed=True, attended=attended)
    answer: Answer = None
    thrown: BaseException | None = None
    while True:
        try:
            event = steps.throw(thrown) if thrown else steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        answer, thrown = True, None
        if not isinstance(event, Ask) or event.key in open_:
            try:
                answer = yield event
            except BaseException as error:
                thrown = error


def _left_off(directory: Path) -> tuple[Path, Recipe, set[str]]:
    """A stopped run's folder and recipe, and the questions that had not been agreed to. Raises UsageError for one that cannot go on."""
    directory = find_run(str(directory))
    recipe = Recipe.load(directory / "recipe.yaml")
    if recipe.model.startswith(IN_MEMORY):
        raise UsageError(f"{directory} is the run of a model in memory: call engine.quantize with that model and {directory} again")
    if (directory / "report.json").exists():
        raise UsageError(f"{directory} is finished: look at it with `qtui show {directory}`")
    if is_running(directory):
        raise UsageError(f"{directory} is still going: stop it first, or wait for it")
    # A plan whose layers were looked at when the run ended had not been agreed to, nor training that had not begun.
    open_ = {"quantize"} if (directory / MEASURED).exists() and not _calibrated(directory) else set()
    return directory, recipe, open_ if (directory / CHECKPOINT).exists() else open_ | {"qat"}


def _calibrated(directory: Path) -> bool:
    """Whether a run came as far as to calibrate."""
    try:
        return any(isinstance(event, StageStarted) and event.stage in ("calibrate", "search") for event in read(directory))
    except EngineError:
        return False


def _guarded(
    recipe: Recipe, out: Path | None, stop: StopToken, resumed: bool, attended: bool, in_hand: tuple[nn.Module, Task] | None = None
) -> Run[Report]:
    """``_carried_out``, and word to the other ranks where this one does not come to its end."""
    try:
        return (yield from _carried_out(recipe, out, stop, resumed, attended, in_hand))
    except (Cancelled, KeyboardInterrupt, GeneratorExit, ranks.LostRank):
        ranks.leave("stopped")
        raise
    except BaseException as error:
        ranks.leave("failed", one_line(error, 300))
        raise


def _carried_out(
    recipe: Recipe, out: Path | None, stop: StopToken, resumed: bool, attended: bool, in_hand: tuple[nn.Module, Task] | None = None
) -> Run[Report]:
    entry = OWN if in_hand else task_of(recipe.model, recipe.task)
    fits.check(recipe, entry.reads)
    recipe, device = entry.settled(recipe), pick_device(recipe.device)
    seen: list[Event] = []
    steps = _taken(*in_hand, recipe, device) if in_hand else entry.load(recipe, stop, device)
    subject = yield from _tapped(_loaded(recipe, entry, steps), seen.append)
    machine = probe()
    asked = {"recipe": recipe.fingerprint(), "device": device, "processor": machine.instructions, "weights": subject.fingerprint}
    ranks.same(asked, "recipes, devices or models", "start all of them with the same")
    moved = machine.moved_from(recipe.isa)
    recipe = recipe.model_copy(update={"isa": machine.instructions})
    recipe = subject.task.settled(recipe)
    name = subject.task.data(1, None)["name"]
    where = _folder(out, recipe.model, name, subject, resumed)
    ranks.when_lost(lambda text: where.state("failed", text))
    job = Job(recipe, subject, machine, where, stop, attended)
    place = Place()
    try:
        for event in seen:
            where.event(event)
        where.write("recipe.yaml", absolute(recipe).to_yaml())
        if moved:
            yield from _tapped(_said(f"the {'run' if resumed else 'recipe'} was {moved}"), where.event)
        return (yield from _tapped(gauged(job.run(), job.gauge), partial(_told, where, place)))
    except (Cancelled, KeyboardInterrupt, GeneratorExit) as stopped:
        if where.finished:
            raise
        # A launcher stops the other ranks where one was lost.
        if lost := ranks.missed():
            _keep_failed(where, lost)
            raise ranks.LostRank(_lost(lost, job.doing, where.path)) from stopped
        with contextlib.suppress(EngineError):
            where.state("cancelled", place.text)
            where.event(Stopped(str(where.path), job.doing))
        if isinstance(stopped, GeneratorExit):
            raise
        yield Stopped(str(where.path), job.doing)
        raise Cancelled from stopped
    except ranks.LostRank as error:
        _keep_failed(where, str(error))
        raise ranks.LostRank(_lost(str(error), job.doing, where.path)) from error
    except EngineError as error:
        where.fail(str(error))
        raise
    except Exception as error:
        text = traceback.format_exc()
        kept = where.fail(f"{type(error).__name__} during {job.doing}", text)
        raise EngineError(
            f"{type(error).__name__} during {job.doing}: {_cause(error)}: {_hint(error, entry)}the traceback is in {kept}"
        ) from error
    finally:
        ranks.when_lost(None)
        where.close()


def _told(where: RunDir, place: Place, event: Event) -> None:
    where.event(event)
    if place.see(event) and not where.finished:
        # A process that is killed writes nothing any more.
        where.state("running", place.text)


def _folder(out: Path | None, model: str, name: str, subject: Subject, resumed: bool) -> RunDir:
    """The run's folder, which rank 0 has."""

    def made() -> RunDir:
        return RunDir(out or new_directory(model, name), model, name, subject.room, resumed)

    if not ranks.several():
        return made()
    own: list[RunDir] = []

    def path() -> Path:
        own.append(made())
        ranks.remember(_FOLDER, str(own[0].path))
        return own[0].path

    there = ranks.called_by_first(path)
    return own[0] if own else Elsewhere(there, resumed)


def _keep_failed(where: RunDir, text: str) -> None:
    """What a run whose rank was lost has saved stays: fewer ranks go on with it."""
    with contextlib.suppress(EngineError):
        where.state("failed", text)
        where.event(Failed(text))


def _lost(text: str, doing: str, directory: Path) -> str:
    return f"{text}, during {doing}: go on, with as many ranks as there are, by qtui resume {directory}"


def _loaded(recipe: Recipe, entry: TaskEntry, steps: Generator[Any, Any, Subject]) -> Run[Subject]:
    """The stage in which ``steps`` load the subject. Raises UsageError for an export that cannot be made of it."""
    try:
        subject = yield from stage("load", f"Loading {recipe.model}", steps)
        exporting.check(recipe, subject)
    except (EngineError, Cancelled):
        raise
    except Exception as error:
        text = f"{type(error).__name__} while loading {recipe.model}: {_cause(error)}"
        raise EngineError(f"{text}: {_hint(error, entry)}check the model and the data") from error
    return subject


def _taken(model: nn.Module, task: Task, recipe: Recipe, device: str) -> Run[Subject]:
    """What a script has in hand, as a run's subject."""
    from engine.models.computed_weights import copied
    from engine.models.custom import checked
    from engine.tasks.own import OwnTask, subject_of

    if not isinstance(task, OwnTask):
        raise UsageError(f"task is a {type(task).__name__}: give engine.Task.of(train=…, metric=…)")
    torch.manual_seed(recipe.seed)
    # The model of a script stays as it is.
    return (yield from subject_of(copied(checked(model, recipe.model)), task, device, "as they are in memory", recipe.model))


def _said(text: str) -> Run[None]:
    yield Notice(text, "warning")


def _cause(error: Exception) -> str:
    """The error's own words, without those that a graph's interpreter adds about its node."""
    return one_line(Exception(str(error).partition("While executing %")[0]), 160)


def _hint(error: Exception, entry: TaskEntry) -> str:
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error).lower():
        return f"lower {entry.memory} in the recipe; "
    return ""


def _tapped(steps: Run[T], tap: Callable[[Event], None]) -> Run[T]:
    """Pass events on and answers back, showing each event to ``tap`` first."""
    answer: Answer = None
    while True:
        try:
            event = steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        tap(event)
        try:
            answer = yield event
        except BaseException as error:
            steps.throw(error)
            raise


def train(
    model: str, data: str | None, *, folder: str | None = None, out: Path | None = None, epochs: int | None = None, seed: int = 0,
    device: str = "auto", command: str = "", stop: StopToken | None = None, stem: Stem = "auto", task: str | None = None,
) -> Run[Path]:  # fmt: skip
    """Train a baseline; the weights file that was written: ``out``, or the one in the cache that a run finds by itself.

    A language model brings its own text: ``data`` is None or that text's name. ``task`` is what is measured, None for what belongs to
    the model; where it is not classification ``data`` None is its own. Raises UsageError or EngineError.
    """
    entry_of_task = task_of(model, task)
    if model in TEXT_MODELS:
        from engine.training import text_minis

        text_minis.check(model, data)
        where = pick_device(device)
        return (
            yield from text_minis.train_mini(
                model, out or Path(model), stop=stop or StopToken(), epochs=epochs, seed=seed, command=command, device=where
            )
        )
    if entry_of_task.reads == "text":
        return (yield from _train_language(model, data, out, epochs, seed, device, command, stop or StopToken()))
    if is_custom(model):
        raise UsageError(f"{model} is your own factory, and training goes by name: give its trained weights to a run by --weights FILE")
    if entry_of_task.name != "classification":
        asked = Recipe.make(model=model, task=entry_of_task.name, **({"data": {"name": folder or data}} if folder or data else {}))
        steps = _train_items(entry_of_task, asked, out, epochs, seed, device, command, stop or StopToken())
        return (yield from steps)
    place = folder or data
    if place is None:
        raise UsageError(f"{model} needs data to be trained on: give a data set or a folder of images by class")
    from engine.data import registry as data_registry
    from engine.models.cached import cached_weights
    from engine.training.baseline import schedule_for, train_baseline

    entry = find(model)
    where = pick_device(device)
    images = data_registry.load(folder or str(data), transform=fitting.transform_of(model))
    fitting.fits(entry, images)
    schedule = replace(schedule_for(images.name, entry), seed=seed)
    if epochs is not None:
        schedule = replace(schedule, epochs=epochs)
    known = data_registry.known_as(place)
    target = out or cached_weights(model, known)
    if out is None and entry.weights_for(known):
        yield Notice(f"the package's weights stay what a run of {model} on {known} takes: --weights {target} takes these", "warning")
    done = yield from train_baseline(entry, images, target, schedule, command, stop or StopToken(), where, stem)
    return done.weights


def _train_items(
    task: TaskEntry, recipe: Recipe, out: Path | None, epochs: int | None, seed: int, device: str, command: str, stop: StopToken
) -> Run[Path]:
    from engine.data.registry import known_as
    from engine.models.cached import cached_weights
    from engine.training.baseline import schedule_for, train_items

    entry = find(recipe.model)
    entry.fits(task.name)
    recipe = task.settled(recipe)
    schedule = replace(schedule_for(recipe.data.name, entry), seed=seed)
    if epochs is not None:
        schedule = replace(schedule, epochs=epochs)
    known = known_as(recipe.data.name)
    target = out or cached_weights(recipe.model, known)
    if out is None and entry.weights_for(known):
        yield Notice(f"the package's weights stay what a run of {recipe.model} on {known} takes: --weights {target} takes these", "warning")
    return (yield from train_items(entry, task.alone(recipe), target, schedule, command, stop, pick_device(device))).weights


def _train_language(
    model: str, data: str | None, out: Path | None, epochs: int | None, seed: int, device: str, command: str, stop: StopToken
) -> Run[Path]:
    """``out`` is a folder, ``model`` in the current one by default."""
    from engine.training import gpt2_mini as mini

    mini.check(model, data)
    schedule = replace(mini.SCHEDULE if epochs is None else mini.with_epochs(mini.SCHEDULE, epochs), seed=seed)
    return (yield from mini.train_mini(out or Path(model), schedule, stop=stop, command=command, device=pick_device(device)))
