"""The whole app in a terminal, with its real engine: the ways through it, the ways out of it, and what a terminal may do to it."""

from __future__ import annotations

import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from pty_terminal import PtyTerminal, python
from the_app import FOLD, LONG, MEASURED, PLAN, Place, ended, reported, training, until
from tmux_terminal import Tmux

pytestmark = pytest.mark.slow

BINARY = random.Random(7).randbytes(100_000).replace(b"\x1b[201~", b"")
ODD = (
    b"\x1b[M\xe0\xa1\xb2\x1b[Mqyn\x1b[M !!" * 40,
    BINARY,
    b"\x1b[200~" + BINARY + b"\x1b[201~",
    b"\x1b[200~" + b"qynSstr\r1" * 11_000 + b"\x1b[201~",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def place(tmp_path: Path, cache: Path) -> Place:
    return Place(tmp_path, cache)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The runs of a place where a run without the app was stopped by a signal, in the second of two epochs of QAT."""
    place = Place(tmp_path_factory.mktemp("interrupted"), cache)
    with place.start("run", "simplecnn", "--qat", "always", "--epochs", "2", "--yes") as process:
        try:
            until(lambda: place.events("EpochFinished") or process.poll() is not None)
            process.terminate()
            told = process.communicate(timeout=30)[0]
        finally:
            process.kill()
    assert process.returncode == 130 and "Traceback" not in told, told
    assert place.state == "cancelled" and list(place.run.glob("checkpoints/*"))
    return place.runs


@pytest.fixture
def stopped(place: Place, interrupted: Path) -> Place:
    """A place of its own with that run."""
    shutil.copytree(interrupted, place.runs)
    return place


def test_a_newcomer_comes_to_a_report_with_the_keys_of_the_footer(tmux: Callable[..., Tmux], place: Place) -> None:
    def on(label: str, seen: str) -> None:
        """Press the footer's last key, which must be named so, once it can act."""
        shown = re.search(r" (\S) (\w+) ▸$", pane.wait_for(f"{label} ▸", LONG).splitlines()[-1])
        assert shown is not None and shown[2] == label
        pane.keys(shown[1])
        pane.wait_for(seen, LONG)

    pane = tmux(python("-m", "qtui"), env=place.environment())
    pane.wait_for("needs nothing but ⏎", LONG)
    on("load", "your choice")
    on("strategy", "as planned")
    pane.wait_for("your choice", LONG)
    on("calibrate", "╭─ Layers")
    pane.wait_for("your choice", LONG)
    on("report", "╭─ Verdict")
    until(lambda: reported(pane.screen().splitlines()))
    pane.keys("q")
    assert pane.exit_code(20) == 0
    assert (place.run / "report.json").is_file() and place.state == "finished"

    again = tmux(python("-m", "qtui"), env=place.environment())
    again.wait_for("● finished", LONG)
    again.keys("Tab", "Enter")
    again.wait_for("╭─ Verdict", LONG)
    again.keys("q")
    assert again.exit_code(20) == 0
    shown = place.headless("show", place.run.name)
    assert shown.returncode == 0 and "simplecnn" in shown.stdout and "99." in shown.stdout


def test_leaving_while_it_trains_saves_and_a_headless_resume_finishes(stopped: Place) -> None:
    with stopped.app() as terminal:
        terminal.wait_for("stopped", LONG)
        training(terminal, "r")
        terminal.press("p")
        terminal.wait_for("paused")
        terminal.press("ctrl+c")
        terminal.wait_for("leave?")
        terminal.press("n")
        terminal.wait_for(lambda t: "leave?" not in t.text)
        terminal.press("q")
        terminal.wait_for("leave?")
        terminal.press("y")
        ended(terminal, 10)
    assert stopped.state == "cancelled" and list(stopped.run.glob("checkpoints/*"))
    done = stopped.headless("resume", stopped.run.name, "--yes")
    assert done.returncode == 0, done.stderr
    assert stopped.state == "finished" and (stopped.run / "report.json").is_file()


def test_a_closed_terminal_leaves_a_run_that_goes_on_in_any_window(stopped: Place) -> None:
    with stopped.app() as terminal:
        terminal.wait_for("stopped", LONG)
        training(terminal, "r")
        terminal.close()
        assert terminal.exit_code(10) == 0
    assert stopped.state == "cancelled"
    with stopped.app() as terminal:
        terminal.wait_for("stopped", LONG)
        training(terminal, "r")
        terminal.resize(40, 12)
        terminal.wait_for(lambda t: len(t.lines) == 12 and "QAT" in t.text)
        terminal.resize(20, 5)
        terminal.wait_for("small", LONG)
        terminal.resize(80, 24)
        terminal.wait_for(lambda t: "╭─ QAT" in t.text or "╭─ Verdict" in t.text)
        terminal.wait_for(lambda t: reported(t.lines), LONG)
        terminal.press("q")
        ended(terminal)
    assert stopped.state == "finished"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_while_it_trains_leaves_a_run_to_resume(stopped: Place, number: int) -> None:
    with stopped.app() as terminal:
        terminal.wait_for("stopped", LONG)
        training(terminal, "r")
        terminal.kill(number)
        ended(terminal, 10)
    assert stopped.state == "cancelled" and list(stopped.run.glob("checkpoints/*"))


def test_killed_while_it_loads_or_calibrates_it_ends_as_bidden(place: Place) -> None:
    with place.app() as terminal:
        terminal.press("enter")
        terminal.wait_for("working …")
        terminal.kill(signal.SIGTERM)
        ended(terminal, 20)
    assert not place.runs.exists() or place.state == "cancelled"
    shutil.rmtree(place.runs, ignore_errors=True)
    with place.app() as terminal:
        # Calibration may be over before a frame shows it: the question behind it does as well.
        for key, seen in (("enter", FOLD), ("n", PLAN), ("n", lambda t: "Calibrat" in t.lines[2] or MEASURED(t))):
            terminal.press(key)
            terminal.wait_for(seen, LONG)
        terminal.kill(signal.SIGHUP)
        ended(terminal, 20)
    assert place.state == "cancelled"


def test_bytes_that_nobody_typed_start_and_stop_nothing_even_on_the_poorest_terminal(place: Place) -> None:
    def survives(seen: Callable[[PtyTerminal], bool]) -> None:
        for data in ODD:
            terminal.write(data)
            terminal.quiet(0.3, 3)
        terminal.press("?")
        terminal.wait_for("help ─", 20)
        terminal.press("esc")
        terminal.wait_for(lambda t: "help ─" not in t.text, 20)
        terminal.wait_for(seen)

    with place.app(NO_COLOR="1", TERM="xterm", LANG="C", LC_ALL="C") as terminal:
        survives(lambda t: "╭─ Models" in t.text and "Choose what to quantize" in t.text)
        for key, seen in (("enter", FOLD), ("n", PLAN), ("n", MEASURED)):
            terminal.press(key)
            terminal.wait_for(seen, LONG)
            survives(seen)
        training(terminal, "t")
        terminal.press("p")
        terminal.wait_for("paused")
        survives(lambda t: "╭─ QAT ─ epoch" in t.text and "paused" in t.lines[1])
        terminal.press("p")
        terminal.wait_for("● best: epoch", LONG)
        terminal.press("s")
        terminal.wait_for(lambda t: reported(t.lines), LONG)
        survives(lambda t: "╭─ Verdict" in t.text)
        terminal.press("q")
        ended(terminal)
    assert place.state == "finished"


@pytest.mark.parametrize(
    "env", [{"NO_COLOR": "1"}, {"TERM": "xterm"}, {"TERM": "screen"}, {"LANG": "C", "LC_ALL": "C"}], ids=lambda env: "-".join(env.values())
)
def test_poor_terminals_show_where_the_cursor_is(place: Place, env: dict[str, str]) -> None:
    place.env |= env
    with place.app() as terminal:
        terminal.quiet(0.3, 3)
        row = next(row for row, line in enumerate(terminal.lines) if "simplecnn" in line and "in the package" in line)
        cursor, other = terminal.row_style(row)[10], terminal.row_style(row + 1)[10]
        assert cursor[1] != other[1] or cursor[2] != other[2]
        terminal.press("q")
        ended(terminal)


def test_without_a_terminal_it_says_what_there_is(place: Place) -> None:
    helped = place.headless(timeout=20)
    assert helped.returncode == 2 and "usage: qtui" in helped.stdout
    with PtyTerminal(["sh", "-c", f"{' '.join(python('-m', 'qtui'))} | cat; exit $?"], env=place.environment()) as terminal:
        terminal.exit_code(20)
        terminal.wait_for("usage: qtui", 5)


def test_a_terminal_that_cannot_place_the_cursor_gets_one_line(place: Place) -> None:
    with PtyTerminal(python("-m", "qtui"), env=place.environment(TERM="dumb")) as terminal:
        assert terminal.exit_code(20) == 2
        terminal.wait_for("error: this terminal cannot show the app", 5)


def test_ctrl_c_leaves_at_rest_and_not_while_one_types(place: Place) -> None:
    with place.app() as terminal:
        terminal.press("/")
        terminal.wait_for("type a part of a name")
        terminal.press("a", "b", "ctrl+c", "c")
        terminal.wait_for("abc")
        terminal.press("esc")
        terminal.wait_for(lambda t: "abc" not in t.text)
        terminal.press("ctrl+c")
        ended(terminal)
