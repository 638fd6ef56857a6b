"""The panels of the app as a whole: help, a problem, leaving while work runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.style import Style
from rich.table import Table
from rich.text import Text

from qtui import actions
from qtui.machine_words import sections
from qtui.messages import Problem
from qtui.screens.dialogs import Confirm, Reading
from qtui.stage_table import find
from qtui.state import Stage, State
from qtui.text import plain
from qtui.what_is_lost import by_leaving

_LEFT = {
    "train": "Training is saved where it stands, and goes on from there.",
    "export": "Files that are finished stay, and the report tells them; the run itself stays as it is.",
}
_LISTS = (("↑ ↓ j k", "One line on."), ("pgup pgdn", "One page on."), ("g G", "To the first, to the last."), ("⏎", "Choose."))


def help_panel(stage: Stage, state: State, dim: Style) -> Reading:
    """The keys of a screen, each with what it does and, where it cannot act, why; ``dim`` is the style of what cannot."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    known = find(stage)
    for title, shown in ((known.title, actions.own(stage)), ("Everywhere", actions.everywhere())):
        table.add_row(Text(f"\n{title}", "bold"), "")
        for action in shown:
            reason = action.why_not(state)
            keys = " ".join(actions.key_text(key) for key in action.keys)
            about = Text(action.help, dim if reason else "")
            if reason:
                about.append(f"\nnot now: {reason}", dim)
            table.add_row(Text(keys, dim if reason else "bold"), about)
    table.add_row(Text("\nIn lists", "bold"), "")
    for keys, what in _LISTS:
        table.add_row(Text(keys, "bold"), what)
    return Reading(f"help ─ {known.title}", Group(Text(known.about), table), hint="↑↓ scroll   esc back")


def machine_panel(found: Mapping[str, Any]) -> Reading:
    """What ``qtui doctor`` prints."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for title, lines in sections(found):
        table.add_row(Text(f"\n{title}" if table.row_count else title, "bold"), "")
        for name, value in lines:
            table.add_row(Text(plain(name)), Text(plain(value)))
    return Reading("this machine", table, hint="↑↓ scroll   esc back")


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
    kind = state.job.kind if state.job else ""
    saved = _LEFT.get(kind) or f"The run stops within a batch and is saved: r on the first screen resumes it.\n{by_leaving(state)}"
    return Confirm("leave?", f"{state.work}.\n{saved}", "stop, save and leave", "stay")
