"""What goes wrong in a run is told in a panel, and the app goes on: models and weights that are not as they should be."""

from __future__ import annotations

import pytest
from pty_terminal import PtyTerminal
from the_app import FOLD, LONG, MEASURED, PLAN, Place, ended, reported

pytestmark = pytest.mark.slow

NET = """
import os, sys, torch
from torch import nn


class Undefined(nn.Module):
    def forward(self, x):
        return x.log() - x.log()


class Part(nn.Module):
    def forward(self, x):
        # A condition on values keeps this module whole in the graph, so that it runs as it stands.
        if x.sum() > 1e30 or os.path.exists("exhausted"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return x


def make():
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), Part(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def nan():
    return nn.Sequential(make(), nn.ReLU(), Undefined())


def raises():
    raise ValueError("boom")


def leaves():
    sys.exit(3)


def endless():
    return endless()
"""
PANEL = "this did not work"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("errors")
    (folder / "net.py").write_text(NET)
    (folder / "wrong.py").write_text("def make(:\n")
    (folder / "torn.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00not json at all")
    return Place(folder, tmp_path_factory.mktemp("cache"))


def choose(terminal: PtyTerminal, key: str, title: str, text: str, then: str) -> None:
    terminal.press(key)
    terminal.wait_for(f"╭─ {title} ─")
    terminal.press(text, "enter")
    if key == "o":
        terminal.wait_for("╭─ task ─")
        terminal.press("enter")
        title = "task"
    terminal.wait_for(lambda t: f"╭─ {title} ─" not in t.text and then in t.text)


def told(terminal: PtyTerminal, *words: str) -> str:
    """The panel says these words; Esc takes it away, and nothing is at work."""

    def text() -> str:
        return " ".join(line.strip(" │╭╮╰╯─") for line in terminal.lines)

    terminal.wait_for(PANEL, LONG)
    terminal.wait_for(lambda t: all(word in text() for word in (*words, "what to try", "esc go on")))
    read = text()
    terminal.press("esc")
    terminal.wait_for(lambda t: PANEL not in t.text)
    assert terminal.process.poll() is None
    return read


def test_each_failure_is_told_and_the_next_run_works(place: Place) -> None:
    with place.app() as terminal:
        choose(terminal, "w", "weights", "torn.safetensors", "torn.saf")
        terminal.press("n")
        told(terminal, "torn.safetensors")
        for name, *words in (
            ("wrong.py:make", "SyntaxError"),
            ("net.py:raises", "boom"),
            ("net.py:leaves", "SystemExit"),
            ("net.py:endless", "Recursion"),
            ("net.py:nan", "NaN"),
        ):
            terminal.press("1")
            terminal.wait_for("╭─ Models")
            choose(terminal, "o", "your own model", name, f"▌{name.partition(':')[2]}")
            terminal.press("n")
            told(terminal, *words)

        terminal.press("1")
        terminal.wait_for("╭─ Models")
        terminal.press("g")
        terminal.wait_for("▌simplecnn")
        terminal.press("n")
        terminal.wait_for(FOLD, LONG)
        terminal.press("q")
        terminal.wait_for("leave?")
        terminal.press("y")
        ended(terminal)


def test_memory_that_gives_out_in_the_calibration_leaves_a_traceback_and_a_run_to_resume(place: Place) -> None:
    with place.app() as terminal:
        choose(terminal, "o", "your own model", "net.py:make", "▌make")
        for key, seen in (("n", FOLD), ("n", PLAN)):
            terminal.press(key)
            terminal.wait_for(seen, LONG)
        (place.folder / "exhausted").touch()
        terminal.press("n")
        text = told(terminal, "OutOfMemoryError during calibrate", "traceback")
        assert "batch" in text
        (trace,) = place.runs.glob("*/traceback.txt")
        assert "Tried to allocate 2.00 GiB" in trace.read_text()
        (place.folder / "exhausted").unlink()
        terminal.press("1")
        terminal.wait_for("✗ failed")
        terminal.press("r")
        terminal.wait_for(MEASURED, LONG)
        terminal.press("n")
        terminal.wait_for(lambda t: reported(t.lines), LONG)
        terminal.press("q")
        ended(terminal)
