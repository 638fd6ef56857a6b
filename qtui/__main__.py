"""``qtui`` and ``python -m qtui``."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    _whole_streams()
    try:
        # Inside, so that Ctrl-C during the imports ends as quietly as later.
        from qtui.cli import dispatch

        return dispatch(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return 130
    finally:
        if argv is None:
            # The program ends now: another Ctrl-C would only put a traceback of the interpreter's own exit on the screen.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        _flush()


def _whole_streams() -> None:
    """A stream that was closed becomes the null device; a character the stream cannot encode becomes ``?``."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _flush() -> None:
    """Flush now: at the interpreter's exit a reader that has gone would cost a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
