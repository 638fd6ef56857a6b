"""What the themes become on terminals of fewer colours: the cursor's row is seen, texts are not drawn in their ground's colour."""

from __future__ import annotations

from pathlib import Path

import pytest
from pty_terminal import PtyTerminal, python

HERE = Path(__file__).parent
ENVIRONMENTS = {
    "truecolor": {"COLORTERM": "truecolor"},
    "256": {},
    "16": {"TERM": "xterm"},
    "console": {"TERM": "linux"},
    "no colour": {"NO_COLOR": "1"},
    "no colour of 16": {"NO_COLOR": "1", "TERM": "xterm"},
}


@pytest.mark.parametrize("theme", ["dark", "light", "safe"])
@pytest.mark.parametrize("terminal", ENVIRONMENTS)
def test_the_cursor_is_seen(theme: str, terminal: str) -> None:
    env = ENVIRONMENTS[terminal] | {"QTUI_THEME": theme, "PYTHONPATH": str(HERE.parents[1])}
    with PtyTerminal(python(HERE / "themed_app.py"), env=env) as pane:
        pane.wait_for("muted")
        pane.quiet(0.1, 1)
        at = next(row for row, line in enumerate(pane.lines) if "conv1" in line)
        cursor, other = pane.row_style(at)[1], pane.row_style(at + 1)[1]
        assert cursor[1] != other[1] or cursor[2] != other[2]
        pane.press("down")
        pane.wait_for(lambda p: p.row_style(at + 1)[1][1:3] == cursor[1:3])
        for line, style in ((line, pane.row_style(row)[0]) for row, line in enumerate(pane.lines)):
            if line.strip():
                assert style[0] != style[1], line
        if terminal.startswith("no colour"):
            shades = {c for row in range(12) for style in pane.row_style(row) for c in style[:2]}
            assert all(c in ("default", "black", "white", "brightblack", "brightwhite") or c[:2] == c[2:4] == c[4:] for c in shades), shades
