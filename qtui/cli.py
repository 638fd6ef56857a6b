"""From the command line to a command, and from its end to an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib import import_module

from engine.errors import Cancelled, EngineError, UsageError

FAILED, WRONG_USAGE, STOPPED = 1, 2, 130
# What several processes can do together.
SHARED = ("run", "resume")
READER_GONE = 141  # What a shell reports for a program that SIGPIPE ended.

# Each command is ``module:function``, imported when it is asked for.
HANDLERS: dict[str, str] = {
    "run": "qtui.commands:run",
    "train": "qtui.commands:train",
    "resume": "qtui.commands:resume",
    "export": "qtui.commands:export",
    "compare": "qtui.against:compare",
    "models": "qtui.listing:models",
    "data": "qtui.listing:data",
    "tasks": "qtui.listing:tasks",
    "new": "qtui.new_file:new",
    "doctor": "qtui.doctor:doctor",
    "runs": "qtui.past:runs",
    "show": "qtui.past:show",
}


def dispatch(argv: Sequence[str]) -> int:
    """Parse, run the command, and turn each way it can end into its exit code and at most one line on stderr."""
    try:
        if not argv and _at_a_terminal():
            from engine.machine.ranks.place import place

            if not place().is_first:
                from qtui.follower import follow

                return follow()
            if os.environ.get("TERM") == "dumb":
                raise UsageError("this terminal cannot show the app (TERM is dumb): use another one, or qtui run")
            from qtui.app import main

            return main()
        from qtui.arguments import build_parser

        parser = build_parser()
        args = parser.read(argv)
        if args.command is None:
            parser.print_help()
            return WRONG_USAGE
        args.argv = list(argv)
        _fits_ranks(args.command)
        return _handler(args.command)(args)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else WRONG_USAGE
    except EngineError as error:
        _complain(error)
        return WRONG_USAGE if isinstance(error, UsageError) else FAILED
    except (Cancelled, KeyboardInterrupt):
        return STOPPED
    except BrokenPipeError:
        return READER_GONE
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}" if error.filename else _unnamed(error))
        return FAILED


def _unnamed(error: OSError) -> OSError | str:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error
    # What was open has no name here: standard output, where no run tells of its own files.
    return f"the output cannot be written ({error.strerror}): make room, or send it elsewhere"


def _fits_ranks(command: str) -> None:
    """Raises UsageError where several processes were started for what one does."""
    from engine.machine.ranks.place import place

    if command not in SHARED and place().count > 1:
        raise UsageError(f"qtui {command} is done by one process: start it without torchrun (several can share {' and '.join(SHARED)})")


def _at_a_terminal() -> bool:
    return bool(sys.stdin and sys.stdin.isatty() and sys.stdout and sys.stdout.isatty())


def _handler(command: str) -> Callable[[Namespace], int]:
    module, _, name = HANDLERS[command].partition(":")
    handler: Callable[[Namespace], int] = getattr(import_module(module), name)
    return handler


def _complain(error: object) -> None:
    from engine.machine.ranks.place import speaks
    from qtui.text import one_line

    if not speaks():
        return
    # A terminal may be gone; the exit code still tells.
    with contextlib.suppress(OSError):
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
