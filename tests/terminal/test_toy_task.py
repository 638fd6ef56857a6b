"""One file and one registry line make a task: it goes from the command line, and through every screen of the app."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pty_terminal import PtyTerminal, python
from the_app import LONG, MEASURED, PLAN, Place, asks, reported, until

HERE = Path(__file__).parent
NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(200):
        x = torch.rand(64, 16)
        loss = nn.functional.mse_loss(net(x), x[:, :1] - x[:, 1:2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net
"""
# The one line of the registry, and then the program as it is.
MAIN = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
from engine.tasks.registry import TASKS, TaskEntry
TASKS["toy"] = TaskEntry("toy", "how much larger the first number is", "MAE", "anything", "pairs", "toy_task")
from qtui.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "toy.py").write_text(MAIN)
    return Place(tmp_path, tmp_path / "cache")


def test_the_file_is_as_short_as_is_said() -> None:
    assert len((HERE / "toy_task.py").read_text().splitlines()) < 60


def test_a_task_goes_from_the_command_line_to_the_report(place: Place) -> None:
    command = [sys.executable, "toy.py", "run", "net.py:make", "--task", "toy", "--preset", "w8a8", "--threshold", "sqnr:10", "--yes"]
    command += ["--qat", "always", "--epochs", "1", "--out", "run"]
    done = subprocess.run(command, cwd=place.folder, env=place.environment(), capture_output=True, text=True, timeout=LONG, check=False)
    report = json.loads((place.folder / "run" / "report.json").read_text())
    assert done.returncode == 0, done.stderr
    assert report["task"] == "toy" and report["baseline"]["metric"] == "MAE" and report["qat"]["epochs"] == 1
    assert report["baseline"]["value"] < report["ptq"]["value"] < 0.2 and "MAE" in report["verdict"]["text"]


@pytest.mark.slow
def test_a_task_goes_through_every_screen_of_the_app(place: Place) -> None:
    with PtyTerminal(python("toy.py"), (100, 30), place.environment(), place.folder) as app:
        app.wait_for("simplecnn", LONG)
        app.press("o")
        app.wait_for("your own model")
        app.press("net.py:make\r")
        app.wait_for("╭─ task ─")
        app.press("toy\r")
        app.wait_for(lambda t: "╭─ task ─" not in t.text and "MAE" in t.text)
        for key, seen in (("enter", asks("╭─ Graph")), ("n", PLAN), ("n", MEASURED), ("n", lambda t: reported(t.lines))):
            app.press(key)
            app.wait_for(seen, LONG)
        assert "MAE" in app.text
        until(lambda: place.state == "finished")
        app.press("q")
        assert app.exit_code(20) == 0
