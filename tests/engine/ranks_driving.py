"""Several processes that work together, without a launcher: what each of them returns, or how it ended."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import driving

_CODE = "import sys; sys.path[:0] = sys.argv[4:]; import ranks_main; ranks_main.main(*sys.argv[1:4])"


def environment(rank: int, count: int, port: int, **more: str) -> dict[str, str]:
    """What a launcher gives rank ``rank``."""
    place = {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {**os.environ, "OMP_NUM_THREADS": "1", **place, **more}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def started(
    work: str, count: int, folder: Path, given: Any = None, own: Mapping[int, Mapping[str, str]] | None = None,
    only: Sequence[int] | None = None,
) -> list[Any]:  # fmt: skip
    """The processes of ``count`` ranks that do ``WORK``; ``own`` are variables of single ranks, and ``only`` those of
    them that are started."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "given.pickle").write_bytes(pickle.dumps(given))
    port = free_port()
    paths = [str(driving.REPOSITORY), str(driving.REPOSITORY / "tests" / "engine")]
    return [
        subprocess.Popen(
            [sys.executable, "-c", _CODE, work, str(folder / "given.pickle"), str(folder / f"rank-{rank}.pickle"), *paths],
            env=environment(rank, count, port, **(own or {}).get(rank, {})), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (range(count) if only is None else only)
    ]  # fmt: skip


def together(work: str, count: int, folder: Path, given: Any = None, seconds: float = 240) -> list[Any]:
    """What ``WORK`` returns on each of ``count`` ranks. Fails where one of them does."""
    processes = started(work, count, folder, given)
    try:
        for process in processes:
            out, err = process.communicate(timeout=seconds)
            assert process.returncode == 0, f"{out}\n{err}"
    finally:
        for process in processes:
            process.kill()
    return [pickle.loads((folder / f"rank-{rank}.pickle").read_bytes()) for rank in range(count)]


def alone(work: str, given: Any = None) -> Any:
    """What the same work returns in one process."""
    import ranks_main

    return ranks_main.work_of(work)(given)
