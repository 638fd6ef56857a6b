"""What a run loses by being stopped, and what it has kept: for the dialog that asks, and for the run in the list. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtui.state import State

if TYPE_CHECKING:
    from engine.runs.rundir import RunSummary

_BEGINS_ANEW = {
    "load": "Loading begins anew; nothing else was done yet.",
    "trace": "Tracing begins anew; nothing else was done yet.",
    "analyze": "The search for pairs begins anew; nothing else was done yet.",
    "fuse": "Folding begins anew, with the pairs that were chosen.",
    "plan": "Planning begins anew, which takes seconds.",
    "sensitivity": "The estimates are lost; candidates that were measured are kept.",
    "inspect": "Nothing is lost.",
    "calibrate": "The calibration{so_far} begins anew; the strategy is kept.",
    "convert": "Rounding begins anew, but for blocks that are finished; the calibration is kept.",
    "evaluate": "Measuring{so_far} begins anew; the calibration is kept.",
    "search": "The trial that runs begins anew; those before it are kept.",
    "export": "The export begins anew; what was measured is kept.",
}
_AT = {
    "trace": "Nothing is lost.", "analyze": "Nothing is lost.", "optimize": "Nothing is lost: the question is asked again.",
    "quantize": "Nothing is lost: the strategy is asked for again.",
    "qat": "Nothing is lost: what was measured is kept, and the question is asked again.",
}  # fmt: skip


def by_leaving(state: State) -> str:
    """Of the work at hand, if it is stopped now."""
    run = state.run
    edits = unsaved_edits(state)
    if edits:
        what = f"{edits} edit{'s' if edits > 1 else ''} of the strategy"
        return f"{what} {'are' if edits > 1 else 'is'} lost: S on the strategy writes {'them' if edits > 1 else 'it'} to a file first."
    if state.asking is not None:
        return _AT.get(state.asking, "Nothing is lost.")
    if run.phase == "qat":
        step = run.training.now
        where = f"at epoch {step.epoch} of {step.epochs}, within the step that runs" if step else "where it stands"
        return f"Nothing is lost: training is saved {where}, with the optimizer, the order of the data and the random state."
    so_far = ""
    if (progress := run.progress) is not None and progress.stage == run.phase and progress.total:
        so_far = f" ({progress.done:,} of {progress.total:,} {progress.unit})"
    return _BEGINS_ANEW.get(run.phase, "The stage that runs begins anew.").format(so_far=so_far)


def unsaved_edits(state: State) -> int:
    """How many layers of a strategy that is still open are not as the run knows them."""
    draft = state.run.draft
    if state.asking != "quantize" or draft is None or draft.as_planned:
        return 0
    return sum(row.path in draft.specs and draft.specs[row.path] != row.requested for row in draft.plan.layers)


def place_of(run: RunSummary) -> str:
    """Where a run that did not end has come to: ``QAT epoch 2 of 5, step 310``."""
    return run.text.removeprefix("stopped during ") or "no stage was finished"


def of_stopped(run: RunSummary) -> str:
    """Where it was stopped, or ended without being asked, and what of that is lost."""
    at = place_of(run)
    killed = run.state == "failed"
    if not at.startswith("QAT"):
        return f"{'Ended' if killed else 'Stopped'}: {at}"
    lost = "at most the last half minute of training is lost" if killed else "nothing is lost"
    return f"{'Ended' if killed else 'Stopped'}: {at}; {lost}"
