"""What only a process of its own can show: signals, a terminal, imports."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

SCRIPT = str(Path(__file__).with_name("scripted.py"))
ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "TERM": "xterm"}


def start(*argv: str, **streams: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, SCRIPT, *argv], cwd=ROOT, env=ENV, **streams)  # type: ignore[call-overload, no-any-return]


def read_until(source: int, wanted: bytes, limit: float = 60.0) -> bytes:
    seen, end = b"", time.monotonic() + limit
    while wanted not in seen:
        assert select.select([source], [], [], max(end - time.monotonic(), 0))[0], seen
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
    with start("met", "1.0", "run", "simplecnn", "--yes", stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL) as run:
        assert run.stdout is not None
        read_until(run.stdout.fileno(), b"calibrate on")
        sent = time.monotonic()
        run.send_signal(number)
        out, err = run.communicate(timeout=30)
    assert run.returncode == 130
    assert err.decode() == "stopping after this batch …\n"
    assert b"stopped during calibrate; go on with: qtui resume runs/one" in out
    assert time.monotonic() - sent < 5, "eight batches would have taken longer"


def test_a_second_ctrl_c_does_not_wait() -> None:
    pipe = subprocess.PIPE
    with start("met", "30", "run", "simplecnn", "--yes", stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL) as run:
        assert run.stdout is not None and run.stderr is not None
        read_until(run.stdout.fileno(), b"calibrate on")
        run.send_signal(signal.SIGINT)
        read_until(run.stderr.fileno(), b"stopping")
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=30)
    assert run.returncode == 130 and b"Traceback" not in err


@pytest.mark.parametrize("stop", [True, False])
def test_questions_and_bars_on_a_terminal(stop: bool) -> None:
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 80))
    with start("met", "0.02", "run", "simplecnn", stdin=side, stdout=side, stderr=side) as run:
        os.close(side)
        try:
            seen = read_until(main, b"trace? [Y/n] ")
            if stop:
                run.send_signal(signal.SIGINT)
            else:
                os.write(main, b"\n" * 4)
            seen += read_until(main, b"go on with: " if stop else b"met")
            assert run.wait(40) == (130 if stop else 0)
        finally:
            run.kill()
            os.close(main)
    assert b"Traceback" not in seen
    assert seen.count(b"? [Y/n] ") == (1 if stop else 4)
    assert stop or (b"\x1b[1m" in seen and b"/512 img, 432 img/s" in seen)


def test_head_ends_it_quietly() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m qtui run --help | head -1; {sys.executable} {SCRIPT} met 0.01 run simplecnn --yes | head -1"],
        cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.stderr == "" and done.stdout.count("\n") == 2


@pytest.mark.parametrize("argv", ["['--help']", "['models']", "['data', '--json']"])
def test_light_commands_do_not_import_torch(argv: str) -> None:
    code = (
        f"import sys, qtui.cli; from qtui.__main__ import main; main({argv}); sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENV, capture_output=True, timeout=90, check=False).returncode == 0


def test_closed_streams_are_no_traceback() -> None:
    command = f"{sys.executable} -m qtui models >&- 2>&-; echo $?; {sys.executable} {SCRIPT} met 0 run simplecnn <&- | tail -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=90, check=False)
    assert (done.stdout, done.stderr) == ("0\nruns/one\n", "")


def test_an_ascii_terminal_gets_question_marks_not_a_traceback() -> None:
    env = {**ENV, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "qtui", "models"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0 and "3?32?32" in done.stdout
