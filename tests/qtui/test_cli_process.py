"""What only a process of its own can show: signals, a terminal, imports."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = str(Path(__file__).with_name("scripted.py"))
ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "TERM": "xterm"}


def start(*argv: str, **streams: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, SCRIPT, *argv], cwd=ROOT, env=ENV, **streams)  # type: ignore[call-overload, no-any-return]


def read_until(source: int, wanted: bytes, limit: float = 15.0) -> bytes:
    seen, end = b"", time.monotonic() + limit
    while wanted not in seen:
        assert time.monotonic() < end, seen
        try:
            piece = os.read(source, 4096)
        except OSError:  # A terminal whose program has ended.
            piece = b""
        if not piece:
            break
        seen += piece
    assert wanted in seen, seen
    return seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_within_a_batch(number: signal.Signals) -> None:
    pipe = subprocess.PIPE
    with start("met", "0.2", "run", "simplecnn", "--yes", stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL) as run:
        assert run.stdout is not None
        read_until(run.stdout.fileno(), b"calibrate on")
        sent = time.monotonic()
        run.send_signal(number)
        out, err = run.communicate(timeout=10)
    assert run.returncode == 130
    assert err.decode() == "stopping after this batch …\n"
    assert b"stopped during calibrate; go on with: qtui resume runs/one" in out
    assert time.monotonic() - sent < 1.2, "eight batches would have taken longer"


def test_a_second_ctrl_c_does_not_wait() -> None:
    pipe = subprocess.PIPE
    with start("met", "30", "run", "simplecnn", "--yes", stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL) as run:
        assert run.stdout is not None and run.stderr is not None
        read_until(run.stdout.fileno(), b"calibrate on")
        run.send_signal(signal.SIGINT)
        read_until(run.stderr.fileno(), b"stopping")
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=10)
    assert run.returncode == 130 and b"Traceback" not in err


def test_ctrl_c_at_a_question_and_a_bar_on_a_terminal() -> None:
    for key, code, wanted in ((b"\x03", 130, b"stopped during calibrate"), (b"\r", 0, b"runs/one")):
        main, side = pty.openpty()
        with start("met", "0.01", "run", "simplecnn", stdin=side, stdout=side, stderr=side) as run:
            os.close(side)
            read_until(main, b"trace? [Y/n] ")
            os.write(main, key * (1 if code else 4)) if code else [os.write(main, b"\r") for _ in range(4)]
            if code:
                os.kill(run.pid, signal.SIGINT)
            seen = read_until(main, wanted)
            while True:
                try:
                    if not os.read(main, 4096):
                        break
                except OSError:
                    break
        os.close(main)
        assert run.returncode == code, seen
        assert b"Traceback" not in seen
        assert code or (b"\x1b[" in seen and b"512 img" in seen)


def test_head_ends_it_quietly() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m qtui run --help | head -1; {sys.executable} {SCRIPT} met 0.01 run simplecnn --yes | head -1"],
        cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stderr == "" and done.stdout.count("\n") == 2


@pytest.mark.parametrize("argv", ["['--help']", "['models']", "['data', '--json']"])
def test_light_commands_do_not_import_torch(argv: str) -> None:
    code = (
        f"import sys, qtui.cli; from qtui.__main__ import main; main({argv}); sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENV, capture_output=True, timeout=30, check=False).returncode == 0


def test_closed_streams_are_no_traceback() -> None:
    command = f"{sys.executable} -m qtui models >&- 2>&-; echo $?; {sys.executable} {SCRIPT} met 0 run simplecnn <&- | tail -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("0\nruns/one\n", "")


def test_an_ascii_terminal_gets_question_marks_not_a_traceback() -> None:
    env = {**ENV, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "qtui", "models"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0 and "3?32?32" in done.stdout
