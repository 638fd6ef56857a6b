"""Whether the other ranks are still there: each tells the store that it is, and leaves word when it goes."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from engine.machine.ranks.place import Place, host
from engine.machine.usage import Meter

# Seconds between two signs of life, and without one after which a rank on another host counts as lost.
BEAT, SILENT = 2.0, 60.0
# Seconds that the main thread has to notice a loss by itself: a broken connection tells it at once, a silent network never.
NOTICE = 20.0
# Seconds that the watching thread has to come back from its last call.
LAST = 10.0

How = Literal["done", "stopped", "failed"]


@dataclass(frozen=True)
class Peer:
    """Another rank's process."""

    rank: int
    host: str
    process: int

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, process {self.process})"


@dataclass(frozen=True)
class Gone:
    """A rank that left, or was lost. ``how`` is None for one that left without a word."""

    peer: Peer
    how: How | None
    reason: str

    def __str__(self) -> str:
        return f"{self.peer} {self.reason}"


class Watch:
    """``store`` is one of its own: a wait of another thread on the same connection would hold it up."""

    def __init__(self, store: Any, at: Place, peers: list[Peer], give_up: Callable[[Gone], None]) -> None:
        self._store, self._at, self._peers, self._give_up = store, at, peers, give_up
        self._lock = threading.Lock()
        self._meter = Meter(at.rank, host())
        # Rank 0 follows all; the others it and the one behind them, so that the store is not asked by all about all.
        self._followed = [peer for peer in peers if at.is_first or peer.rank in (0, (at.rank + 1) % at.count)]
        self._beats: dict[int, tuple[bytes, float]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="ranks", daemon=True)
        self._thread.start()

    def leave(self, how: How, reason: str = "") -> None:
        """Leave word for the others, and stop to watch."""
        self._ended.set()
        with self._lock, contextlib.suppress(RuntimeError):
            key = f"gone/{self._at.rank}"
            if not self._store.check([key]):
                self._store.set(key, json.dumps([how, reason]))
        # A thread that comes back from the store while the interpreter ends is unwound by force, which aborts the process.
        self._thread.join(LAST)

    def gone(self, patience: float = 0.0, done: bool = False, among: list[Peer] | None = None) -> Gone | None:
        """The rank that left first, as far as is known within ``patience`` seconds: one that died or failed before one that was
        stopped, which may be a consequence. With ``done`` one that had nothing more to do counts as well; ``among`` are those that are
        looked at, all others by default."""
        until = time.monotonic() + patience
        while True:
            found = [gone for peer in among or self._peers if (gone := self._look(peer)) is not None and (done or gone.how != "done")]
            grave = next((gone for gone in found if gone.how in (None, "failed")), None)
            if grave or time.monotonic() >= until:
                return grave or next(iter(found), None)
            time.sleep(0.1)

    def heard(self) -> list[dict[str, Any]]:
        """What each of the other ranks said last of what it takes of its machine."""
        found = []
        for beat, _ in list(self._beats.values()):
            with contextlib.suppress(ValueError):
                said = json.loads(beat)
                if isinstance(said, list):
                    found.append(said[1])
        return found

    def _look(self, peer: Peer) -> Gone | None:
        with self._lock:
            try:
                if self._store.check([f"gone/{peer.rank}"]):
                    how, reason = json.loads(self._store.get(f"gone/{peer.rank}"))
                    return Gone(peer, how, reason)
                beat = bytes(self._store.get(f"beat/{peer.rank}"))
            except RuntimeError:
                # The store is held by the launcher or by rank 0: it went with them.
                if self._at.rank and not self._at.agent and peer.rank == 0:
                    return Gone(peer, None, "is gone, and the store with it")
                return self._dead(peer)
        before, since = self._beats.get(peer.rank, (b"", 0.0))
        now = time.monotonic()
        if beat != before:
            self._beats[peer.rank] = (beat, now)
        elif now - since > SILENT:
            return Gone(peer, None, f"has not been heard of for {SILENT:.0f} seconds")
        return self._dead(peer)

    def _dead(self, peer: Peer) -> Gone | None:
        if peer.host != host() or _lives(peer.process):
            return None
        # Its word may have come since it was looked for.
        with self._lock, contextlib.suppress(RuntimeError, ValueError):
            if self._store.check([f"gone/{peer.rank}"]):
                how, reason = json.loads(self._store.get(f"gone/{peer.rank}"))
                return Gone(peer, how, reason)
        return Gone(peer, None, "ended without a word (killed, or out of memory)")

    def _follow(self) -> None:
        count, noticed = 0, 0.0
        while not self._ended.wait(BEAT):
            count += 1
            with self._lock, contextlib.suppress(RuntimeError):
                self._store.set(f"beat/{self._at.rank}", json.dumps([count, asdict(self._meter.look())]))
            lost = self.gone(among=self._followed)
            if lost is None or lost.how == "stopped":
                continue
            noticed = noticed or time.monotonic()
            if time.monotonic() - noticed > NOTICE and not self._ended.is_set():
                self._give_up(lost)


def _lives(process: int) -> bool:
    """Whether a process of this host runs; one that has ended and was not asked about yet does not."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    if Path("/proc/self/stat").exists():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
