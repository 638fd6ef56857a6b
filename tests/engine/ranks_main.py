"""What a process of the tests of several ranks runs: work of ``ranks_work``, or what needs nothing but the ranks themselves."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path
from typing import Any

from engine.errors import Cancelled, EngineError
from engine.machine import ranks


def main(work: str, given: str, result: str) -> None:
    """Do ``work`` as one of several ranks, and leave what it returns in a file."""
    try:
        ranks.join()
        found = work_of(work)(pickle.loads(Path(given).read_bytes()))
    except EngineError as error:
        found = f"{type(error).__name__}: {error}"
        ranks.leave("stopped" if isinstance(error, ranks.LostRank) else "failed", str(error))
    except Cancelled:
        found = "Cancelled"
    Path(result).write_bytes(pickle.dumps(found))
    ranks.leave("done")


def work_of(work: str) -> Any:
    """Networks and data are imported by those that need them: that takes seconds."""
    if work in globals():
        return globals()[work]
    import ranks_work
    import torch

    torch.set_num_threads(1)
    return getattr(ranks_work, work)


def nothing(given: None) -> int:
    return ranks.count()


def agreed(given: None) -> str:
    """What each rank's recipe is called, which is to be the same."""
    ranks.same({"recipe": os.environ.get("A_RECIPE", "one")}, "recipes", "start all of them with the same")
    return "agreed"


def one_ends(how: str) -> str:
    """Rank 1 dies, fails or is stopped while the others wait for it."""
    if ranks.number() == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "stopped":
            ranks.leave("stopped")
            raise Cancelled
        raise EngineError("its data are damaged: copy them again")
    ranks.gathered(ranks.number())
    return "went on"
