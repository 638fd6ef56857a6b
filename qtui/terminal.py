"""Which terminal this is, told by the environment, and what follows from it."""

from __future__ import annotations

import base64
import contextlib
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from textual.driver import Driver

Environment = Mapping[str, str]
Depth = Literal["16", "256", "truecolor"]

HINT = "A lost connection stops the run: start in tmux to keep it. It is saved either way."
_RATE, _SSH_RATE, _SLOWEST, _FASTEST = 8.0, 4.0, 1.0, 30.0
# Encoded, that is 100,000 characters, which terminals with a limit are known to take.
_CLIPBOARD_LIMIT = 74_994
# GNU screen drops longer strings.
_SCREEN_PIECE = 200


def over_ssh(env: Environment) -> bool:
    """Whether the terminal is at the other end of a connection."""
    return bool(env.get("SSH_CONNECTION") or env.get("SSH_TTY") or env.get("SSH_CLIENT") or env.get("MOSH_CONNECTION"))


def inside_multiplexer(env: Environment) -> bool:
    """Whether tmux, screen or zellij on this machine holds the terminal, so that a lost connection is not felt here."""
    return any(env.get(name) for name in ("TMUX", "STY", "ZELLIJ"))


def connection_hint(env: Environment) -> str | None:
    """What to tell a user whose run a lost connection would stop; None where it would not."""
    return HINT if over_ssh(env) and not inside_multiplexer(env) else None


def refresh_rate(env: Environment) -> float:
    """How often a second the screen takes in what happened; ``QTUI_HZ`` overrides, from 1 to 30."""
    with contextlib.suppress(ValueError):
        if (wanted := float(env.get("QTUI_HZ", ""))) == wanted:
            return min(_FASTEST, max(_SLOWEST, wanted))
    return _SSH_RATE if over_ssh(env) else _RATE


def depth(env: Environment) -> Depth:
    """How many colours Textual writes."""
    if env.get("COLORTERM", "").strip().lower() in ("truecolor", "24bit"):
        return "truecolor"
    last = env.get("TERM", "").strip().lower().rpartition("-")[2]
    return "256" if last in ("256color", "kitty") else "16"


def no_colour(env: Environment) -> bool:
    """Whether Textual turns every colour into a grey. Unlike no-color.org, it takes an empty ``NO_COLOR`` for a set one."""
    return "NO_COLOR" in env


def wants_mouse(env: Environment) -> bool:
    """Whether to ask for the mouse: over SSH not, for each move would travel there and back; ``QTUI_MOUSE`` 0 or 1 overrides."""
    return {"0": False, "1": True}.get(env.get("QTUI_MOUSE", "").strip(), not over_ssh(env))


def driver_class() -> type[Driver] | None:
    """The driver for ``App(driver_class=…)``; None, which means Textual's own, where ours does not fit the installed Textual."""
    try:
        from qtui import driver as ours
    except (ImportError, AttributeError):
        return None
    return ours.QtuiDriver if ours.fits() else None


def clipboard_sequences(text: str, env: Environment) -> list[str]:
    """What to write to the terminal for it to take ``text`` into its clipboard; empty when that is too much for one."""
    data = text.encode()
    if len(data) > _CLIPBOARD_LIMIT:
        return []
    term = env.get("TERM", "")
    plain = f"\x1b]52;c;{base64.b64encode(data).decode()}\x07"
    if env.get("STY") or (term.startswith("screen") and not env.get("TMUX")):
        pieces = [plain[at : at + _SCREEN_PIECE] for at in range(0, len(plain), _SCREEN_PIECE)]
        return ["".join(f"\x1bP{piece}\x1b\\" for piece in pieces)]
    if env.get("TMUX") or term.startswith("tmux"):
        # tmux heeds the plain one with set-clipboard on, the wrapped one with allow-passthrough on, and ignores the other.
        wrapped = "\x1bPtmux;" + plain.replace("\x1b", "\x1b\x1b") + "\x1b\\"
        return [plain, wrapped]
    return [plain]


def copy(app_write: Callable[[str], object], text: str, env: Environment, fallback_dir: Path, name: str = "copied.txt") -> Path | None:
    """Put ``text`` into the terminal's clipboard as far as it lets us, and into a file in any case: that file, None if it failed.

    No terminal says whether it took the text, hence the file.
    """
    if not _tmux_takes(text, env):
        for sequence in clipboard_sequences(text, env):
            app_write(sequence)
    try:
        fallback_dir.mkdir(parents=True, exist_ok=True)
        path = fallback_dir / name
        path.write_text(text, encoding="utf-8")
    except OSError:
        return None
    return path


def _tmux_takes(text: str, env: Environment) -> bool:
    """With its default options tmux ignores both sequences of a program, but not its own command."""
    if not env.get("TMUX") or not shutil.which("tmux", path=env.get("PATH")):
        return False
    command = ["tmux", "load-buffer", "-w", "-"]
    try:
        done = subprocess.run(command, input=text.encode(), env=dict(env), capture_output=True, timeout=1, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
