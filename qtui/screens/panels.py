"""The panels of the app as a whole: help, a problem, leaving while work runs."""

from __future__ import annotations

from rich.text import Text

from qtui import actions
from qtui.messages import Problem
from qtui.screens.dialogs import Confirm, Reading
from qtui.state import Stage, State
from qtui.subject import TITLES

_ABOUT: dict[Stage, str] = {
    "model": "Choose a model, its data and weights; or reopen and resume what was done before.",
    "graph": "What the model computes, node by node. A convolution and the normalization behind it can become one layer.",
    "strategy": "What each layer is to become: bits of weights and activations, scales, observer; and why that is proposed.",
    "calibrate": "Training images show which ranges values take; then the quantized model is measured on its real kernels.",
    "train": "Training with quantization in the loop (QAT). The epoch that is best on validation images is kept.",
    "report": "What was measured, layer by layer, what was exported, and how this run compares with the others.",
}


def help_panel(stage: Stage, state: State) -> Reading:
    """The keys of a screen, each with what it does and, where it cannot act, why."""
    text = Text(f"{_ABOUT[stage]}\n\n")
    own, everywhere = ([a for a in actions.ACTIONS if where in a.where] for where in (stage, "*"))
    for title, shown in ((TITLES[stage], own), ("Everywhere", everywhere)):
        text.append(f"{title}\n", "bold")
        for action in shown:
            reason = action.why_not(state)
            keys = " ".join(actions.key_text(key) for key in action.keys)
            text.append(f"  {keys:<8}", "dim" if reason else "bold")
            text.append(f"{action.help}\n", "dim" if reason else "")
            if reason:
                text.append(f"{'':10}now: {reason}\n", "dim italic")
        text.append("\n")
    text.append("Lists\n", "bold")
    text.append("  ↑↓ jk   move     pgup pgdn   page     g G   first, last     ⏎   choose     esc   back")
    return Reading(f"help ─ {TITLES[stage]}", text, hint="↑↓ scroll   esc back")


def problem_panel(problem: Problem) -> Reading:
    """What happened, what to try, and where the traceback is."""
    text = Text(problem.what)
    if problem.next_step:
        text.append("\n\nwhat to try  ", "bold")
        text.append(problem.next_step)
    if problem.traceback:
        text.append("\n\ntraceback  ", "bold")
        text.append(problem.traceback)
    return Reading("✗ this did not work", text, harm=True, hint="esc go on")


def leave_panel(state: State) -> Confirm:
    """Leaving while the engine works."""
    what = state.job.title if state.job else "work"
    saved = "What it has learned so far is lost; the last whole epoch is saved." if state.job and state.job.kind == "train" else (
        "The run stops within a batch and is saved: r on the first screen resumes it."
    )  # fmt: skip
    return Confirm("leave?", f"{what[:1].upper()}{what[1:]} is at work.\n{saved}", "stop, save and leave", "stay")
