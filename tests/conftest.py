"""How many processes share the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Before torch is loaded: processes that share the cores must not wait for each other's threads.
    _threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(_threads))

# Of memory that a process of tests may come to need.
_GIB_EACH, _MOST = 4, 8


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One for each core, as far as there is memory; tests that are named run in this process, where they can be stepped through."""
    root = Path(str(config.rootpath))
    named = [Path(str(name).partition("::")[0]).resolve() for name in config.args]
    if any(path not in (root, root / "tests") for path in named):
        return 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(os.cpu_count() or 1, int(memory / _GIB_EACH), _MOST))
