"""``--target`` on the command line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qtui.arguments import build_parser
from qtui.request import overrides


def test_targets_are_given_several_times() -> None:
    args = build_parser().read(["run", "simplecnn", "--target", "drop:0.003", "--target", "size:0.2"])
    assert overrides(args)["targets"] == ["drop:0.003", "size:0.2"]
    assert "targets" not in overrides(build_parser().read(["run", "simplecnn"]))


@pytest.mark.parametrize(
    ("text", "said"), [("sice:0.2", "did you mean size"), ("drop:x", "0 to 1 of the metric"), ("size:0.2TB", "size:1.5MB")]
)
def test_a_target_that_is_wrong_is_one_line_and_exit_code_2(text: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qtui", "run", "simplecnn", "--target", text, "--yes"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1
