"""What a process takes of its machine: against what it is known to have taken, and against the kernel's own files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.machine.usage import Meter


def test_a_busy_process_keeps_a_processor_busy_and_an_idle_one_none() -> None:
    meter = Meter()
    begun, spent = time.perf_counter(), time.process_time()
    while time.process_time() - spent < 0.3:
        pass
    busy = 0.3 / (time.perf_counter() - begun)
    assert meter.look().cpu == pytest.approx(busy, abs=0.15)
    time.sleep(0.3)
    assert meter.look().cpu < 0.15


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's own figures are in /proc")
def test_memory_is_what_the_kernel_says() -> None:
    held = bytearray(os.urandom(1)) * 60_000_000
    found = Meter().look()
    told = {line.split(":")[0]: line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Vm")}
    assert found.memory_bytes == pytest.approx(int(told["VmRSS"]) * 1024, rel=0.02)
    assert found.peak_bytes == pytest.approx(int(told["VmHWM"]) * 1024, rel=0.02)
    assert found.memory_bytes > len(held)


def test_the_module_loads_neither_torch_nor_psutil() -> None:
    code = "import sys, engine.machine.usage, engine.machine.ranks; sys.exit(' '.join({'torch', 'psutil'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
