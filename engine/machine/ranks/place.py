"""Which of several processes this one is, as ``torchrun`` and Slurm's launchers say it in the environment. Torch-free."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from engine.errors import UsageError


@dataclass(frozen=True)
class Place:
    """``rank`` of ``count`` processes, ``local`` among those of its host; they meet at ``host``:``port``. ``attempt`` counts the
    restarts by ``torchrun --max-restarts``; with ``agent`` the launcher holds the store that they meet at."""

    rank: int = 0
    count: int = 1
    local: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    attempt: int = 0
    agent: bool = False

    @property
    def is_first(self) -> bool:
        return self.rank == 0


ALONE = Place()


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """What RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT say; alone without them. Raises UsageError for values that
    cannot be."""
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return ALONE
    count, rank = _number(environment, "WORLD_SIZE"), _number(environment, "RANK")
    attempt = _number(environment, "TORCHELASTIC_RESTART_COUNT", 0)
    if rank >= max(count, 1):
        raise UsageError(f"RANK={rank} with WORLD_SIZE={count}: ranks are counted from 0, start the processes with torchrun")
    if count <= 1:
        return Place(attempt=attempt)
    if "MASTER_ADDR" not in environment:
        raise UsageError(f"WORLD_SIZE={count} without MASTER_ADDR: start the processes with torchrun, or say where rank 0 is")
    local = _number(environment, "LOCAL_RANK", rank)
    agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Place(rank, count, local, environment["MASTER_ADDR"], _number(environment, "MASTER_PORT", 29500), attempt, agent)


def speaks() -> bool:
    """Whether this process may say something: of several ranks the first does, and one whose place cannot be read."""
    try:
        return place().is_first
    except UsageError:
        return True


def host() -> str:
    """The name of this machine."""
    return socket.gethostname()


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        raise UsageError(f"{name}={text!r} is no number: start the processes with torchrun")
    return int(text)
