"""Why an action cannot act now: pure functions from the state to a sentence, or None when it can."""

from __future__ import annotations

from qtui.stage_table import digit
from qtui.state import State


def _stopped() -> str:
    return f"This run was stopped: r on the first screen ({digit('model')}) goes on with it"


def never(state: State) -> str | None:
    return None


def no_machine(state: State) -> str | None:
    return None if state.machine else "PyTorch is being started: the machine is known in a moment"


def busy(state: State) -> str | None:
    if not state.busy or state.job is None:
        return None
    return f"{state.work}: X stops it and saves, or wait for it"


def nothing_to_stop(state: State) -> str | None:
    if not state.busy or state.job is None:
        return "Nothing is at work"
    return "Already stopping" if state.job.stopping else None


def cannot_start(state: State) -> str | None:
    return busy(state)


def cannot_resume(state: State) -> str | None:
    if reason := busy(state):
        return reason
    if not any(run.state in ("cancelled", "failed") for run in state.runs):
        return "No run was stopped: there is nothing to resume"
    return None


def no_graph(state: State) -> str | None:
    return None if state.run.traced else f"There is no graph yet: load a model first ({digit('model')}, then n)"


def fold_not_open(state: State) -> str | None:
    if state.asking == "optimize":
        return None
    if state.run.fused:
        return f"Folding is done for this run: a new run can fold otherwise ({digit('model')})"
    if no_graph(state):
        return no_graph(state)
    if decodes(state):
        return "A language model has no batch normalization: there is nothing to fold"
    if state.busy and state.run.status("graph") == "running":
        return "Folding goes on: its effect stands here in a moment" if state.run.pairs else "Pairs are being looked for: in a moment"
    return f"Folding is not open for this run: a new run can fold otherwise ({digit('model')})"


def decodes(state: State) -> bool:
    """Whether the run is of a language model, as far as is known."""
    traced, plan = state.run.traced, state.run.plan
    return bool(traced and traced[0].opcode == "module") or bool(plan and any(row.capabilities.between_floats for row in plan.layers))


def not_folded(state: State) -> str | None:
    if not state.run.fused and decodes(state):
        return "A language model has no batch normalization: there is nothing to fold"
    return None if state.run.fused else "Nothing is folded yet: f folds the marked pairs"


def no_plan(state: State) -> str | None:
    return None if state.run.draft else f"There is no plan yet: fold or go on in the graph first ({digit('graph')}, then n)"


def no_undo(state: State) -> str | None:
    if reason := no_plan(state):
        return reason
    return None if state.run.draft and state.run.draft.past else "Nothing was edited: there is nothing to take back"


def no_redo(state: State) -> str | None:
    if reason := no_plan(state):
        return reason
    return None if state.run.draft and state.run.draft.future else "Nothing was taken back: there is nothing to do again"


def replan_not_open(state: State) -> str | None:
    if reason := no_plan(state):
        return reason
    if state.asking in ("quantize", "qat") or not state.busy:
        return None
    if state.exporting:
        return busy(state)
    return "The run has gone on from here: X stops it, then n measures again"


def cannot_calibrate(state: State) -> str | None:
    if reason := no_plan(state):
        return reason
    if state.asking in ("quantize", "qat") or not state.busy:
        return None
    if state.exporting:
        return busy(state)
    return f"The run is at work: its result comes on the next screen ({digit('calibrate')})"


def no_calibration(state: State) -> str | None:
    run = state.run
    if run.ranges or run.measured or run.at in ("calibrate", "train", "report"):
        return None
    return f"Nothing is calibrated yet: go on from the strategy first ({digit('strategy')}, then n)"


def not_measured(state: State) -> str | None:
    return None if state.run.layers else "No layer is measured yet: that comes after the calibration"


def no_changes(state: State) -> str | None:
    if state.run.changed is not None:
        return None
    if state.run.report is None:
        return no_report(state)
    what = "continues words, which w shows" if state.run.samples else "shows nothing of single items, or was run by an earlier version"
    return f"This run's task {what}"


def no_samples(state: State) -> str | None:
    if state.run.samples:
        return None
    return "A language model writes, once it is measured; networks on images do not"


def not_measured_yet(state: State) -> str | None:
    if state.asking == "qat" or state.run.report:
        return None
    if state.run.stopped:
        return _stopped()
    if state.run.measured.get("ptq"):
        return "The layers are still being measured: the report comes after them"
    return "Nothing is measured yet: the report comes after the measurement"


def not_running(state: State) -> str | None:
    if state.exporting:
        return f"Nothing runs but an export: X stops it, or s in the report ({digit('report')})"
    if state.busy and state.asking is None and state.job is not None:
        return "Already stopping" if state.job.stopping else None
    return "Nothing runs at the moment"


def train_not_open(state: State) -> str | None:
    if state.asking == "qat":
        return None
    if state.run.measured.get("qat"):
        return f"This run was trained: the result is in the report ({digit('report')})"
    if state.run.report:
        return f"This run is finished: t in its report runs it again with training ({digit('report')})"
    if state.run.stopped:
        return _stopped()
    return "Training starts from a measured model: calibrate first"


def no_training(state: State) -> str | None:
    if state.run.training.now or state.run.training.epochs or state.run.at == "train":
        return None
    if state.asking == "qat":
        return f"Nothing is trained yet: t on the calibration starts it ({digit('calibrate')})"
    return _stopped() if state.run.stopped and not state.run.report else "Nothing was trained in this run"


def no_epoch(state: State) -> str | None:
    if reason := not_running(state):
        return reason
    if state.job is not None and state.job.ending:
        return "Training ends already: its best epoch is kept"
    if state.run.phase not in ("", "qat"):
        return "Training is over: its best epoch is being measured"
    if not state.run.training.epochs:
        return "No epoch has finished yet, so there is no best one to keep: S stops and saves"
    return None


def no_report(state: State) -> str | None:
    if state.run.report:
        return None
    return _stopped() if state.run.stopped else "There is no report yet: it comes when the run is finished"


def cannot_export(state: State) -> str | None:
    if reason := busy(state) or no_report(state):
        return reason
    return None if state.run.directory else f"The folder of this run is not known: open it from the models ({digit('model')})"


def no_export(state: State) -> str | None:
    if not state.exporting or state.job is None:
        return "Nothing is being exported: x begins"
    return "Already stopping" if state.job.stopping else None


def cannot_train_again(state: State) -> str | None:
    if reason := busy(state) or no_report(state):
        return reason
    return "This run was trained already" if state.run.measured.get("qat") else None
