"""Questions between the stages, answered at the keyboard, by ``--yes``, or by their default where there is no input."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TextIO

from engine.errors import Cancelled
from engine.events.cancellation import StopToken
from engine.events.event import Ask
from qtui.screen import Screen
from qtui.text import plain

_WORDS = {"y": True, "yes": True, "n": False, "no": False}


class Prompts:
    """``interruptible`` is entered, with the input, while a line is read: inside it Ctrl-C raises KeyboardInterrupt."""

    def __init__(
        self,
        screen: Screen,
        stdin: TextIO | None,
        yes: bool = False,
        stop: StopToken | None = None,
        interruptible: Callable[[TextIO | None], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._screen, self._stdin, self._yes = screen, stdin, yes
        self._stop = stop or StopToken()
        self._interruptible = interruptible
        self._told = False

    def ask(self, event: Ask) -> bool | None:
        """The answer; None, without a question, once the run is to stop: the engine ends it at its next check."""
        question = f"{plain(event.question)} {'[Y/n]' if event.default else '[y/N]'} "
        while not self._stopping():
            self._screen.write(question)
            if self._yes:
                self._screen.write("yes\n")
                return True
            try:
                with self._interruptible(self._stdin):
                    line = self._stdin.readline() if self._stdin else ""
            except KeyboardInterrupt:
                self._screen.write("\n")
                self._stop.set()
                break
            except (OSError, ValueError):
                line = ""  # A terminal that is gone, or bytes that are no text.
            if not line:
                return self._default(event)
            if not self._stdin or not self._stdin.isatty():
                self._screen.write(f"{plain(line.strip())}\n")
            answer = _WORDS.get(line.strip().lower(), event.default if not line.strip() else None)
            if answer is not None:
                return answer
            self._screen.line("please answer y or n", "yellow", 2)
        return None

    def _stopping(self) -> bool:
        try:
            self._stop.check()
        except Cancelled:
            return True
        return False

    def _default(self, event: Ask) -> bool:
        self._screen.write(f"{'yes' if event.default else 'no'}{'' if self._told else ' (no input: the defaults from here on)'}\n")
        self._told = True
        return event.default
