"""The errors a person can act on: one line that names the thing, the place and the next step."""

from __future__ import annotations

from engine import plain_text


class EngineError(Exception):
    """A run that cannot go on. ``str(error)`` is one line, ready to be shown."""

    exit_code = 1


class UsageError(EngineError):
    """What was asked makes no sense as asked: a misspelt model, a bad option, a recipe with a typo."""

    exit_code = 2


class Cancelled(Exception):
    """The person stopped the work. Raised at the next batch or layer boundary."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """The error's text on one line of at most ``limit`` characters, with nothing that could steer a terminal; empty where it has
    none."""
    return plain_text.one_line(error, limit)


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """A hint such as ``"did you mean resnet18?"``, or the list of what is known when nothing is near."""
    import difflib

    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    # Beside what a slip of one letter meant, what is only like it is no suggestion.
    slips = difflib.get_close_matches(name, close, n=3, cutoff=0.9)
    close = slips or close
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
