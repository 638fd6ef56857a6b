"""What a language model writes before and after, side by side."""

from __future__ import annotations

from itertools import zip_longest
from textwrap import wrap

from rich.text import Text

from qtui.screens.dialogs import Reading
from qtui.state import Run
from qtui.text import one_line

_GAP = "  "


def samples_panel(run: Run, width: int) -> Reading:
    """Each beginning with what the forms write after it, in columns."""
    out = Text()
    for index, sample in enumerate(run.samples):
        forms = list(sample.texts)
        column = max((width - len(_GAP) * (len(forms) - 1)) // max(len(forms), 1), 10)
        out.append("\n\n" if index else "")
        for line in wrap(one_line(sample.prompt), width):
            out.append(f"{line}\n", "dim")
        out.append(_GAP.join(f"{form:<{column}}" for form in forms).rstrip() + "\n", "bold")
        columns = [wrap(one_line(sample.texts[form]), column) for form in forms]
        same = len({tuple(one_line(sample.texts[form]).split()) for form in forms}) == 1
        for row in zip_longest(*columns, fillvalue=""):
            out.append(_GAP.join(f"{cell:<{column}}" for cell in row).rstrip() + "\n")
        if same:
            out.append("word for word the same\n", "dim")
    out.rstrip()
    return Reading("the same words continued", out, hint="↑↓ scroll   esc back")
