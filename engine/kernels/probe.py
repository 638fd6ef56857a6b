"""What this machine can run, asked of a child process: a kernel that crashes must not take the program with it.

The child computes each kernel on small inputs against exact integer arithmetic, and looks whether sums of uint8 x int8
products saturate: without VNNI instructions two products are added in 16 bits, and full 8-bit activations give wrong
results without any error. The answer is kept in the user's cache, by torch version and processor.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from engine.kernels.dnnl.library import path
from engine.paths import cache_dir, write_atomic
from engine.reading import MB, read_json

FAMILIES = {
    "onednn": ("qconv_pointwise", "qconv2d_pointwise.binary", "qlinear_pointwise"),
    "dnnl": ("dnnl.convolution", "dnnl.convolution+sum", "dnnl.matmul", "dnnl.steps"),
}
KERNELS = tuple(name for names in FAMILIES.values() for name in names)


UNKNOWN = "unknown"


@dataclass(frozen=True)
class Machine:
    """``isa`` is torch's word for the instruction set; ``saturates`` is measured, None when no kernel ran.

    ``isa`` is ``unknown`` where the probe itself failed. ``kernels`` maps each kernel to None when it is exact here, else to
    what went wrong. ``device`` is where they run: ``gpu.seen_from`` tells of a GPU's.
    """

    isa: str
    vnni: bool
    saturates: bool | None
    kernels: dict[str, str | None] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def activation_bits(self) -> int:
        """The widest activations whose products cannot saturate."""
        unknown = self.saturates is None and self.integer
        return 7 if self.saturates or unknown else 8

    def runs(self, family: str) -> bool:
        return all(self.kernels.get(name, "not probed") is None for name in FAMILIES[family])

    @property
    def instructions(self) -> str:
        """What a recipe and a file keep of the machine: ``AVX512, VNNI`` or ``AVX2, no VNNI``."""
        return f"{self.isa}, {'VNNI' if self.vnni else 'no VNNI'}"

    def moved_from(self, made_on: str | None) -> str | None:
        """A sentence where something was made on other instructions (``instructions``, or the set alone) than this machine's."""
        if not made_on or made_on in (self.instructions, self.isa):
            return None
        bits = (
            "sums of 8-bit products saturate here, so activations use 7 bits" if self.activation_bits == 7
            else "there they used 7 bits, here they can use 8" if made_on.endswith("no VNNI")
            else "other kernels round otherwise"
        )  # fmt: skip
        return f"made on {made_on}, and this machine has {self.instructions}: {bits}; figures and speed can differ"

    @property
    def integer(self) -> bool:
        return any(self.runs(family) for family in FAMILIES)


def probe(refresh: bool = False) -> Machine:
    """The machine's abilities, from the cache or a child process (about three seconds)."""
    if refresh:
        _probe.cache_clear()
    return _probe(_key(), refresh)


def machine_key() -> str:
    """16 hex digits that change with the processor, torch, and what the environment switches off."""
    return _key()


@lru_cache(maxsize=4)
def _probe(key: str, refresh: bool) -> Machine:
    kept = cache_dir() / f"probe-{key}.json"
    if not refresh:
        try:
            return _kept(read_json(kept, MB))
        except (OSError, ValueError, TypeError):
            pass
    machine = _ask_child()
    if machine.isa == UNKNOWN:
        # The child told nothing: it was too slow on a busy machine, or could not start. The next run asks again.
        return machine
    # A cache that cannot be written costs three seconds a run, no more.
    with contextlib.suppress(OSError):
        write_atomic(kept, json.dumps(asdict(machine)).encode())
    return machine


def _kept(found: Any) -> Machine:
    """The machine of a kept answer. Raises TypeError for one that is not what ``asdict`` gives: a damaged file decides nothing."""
    machine = Machine(**found)
    words = {"isa": str, "vnni": bool, "saturates": bool | None, "kernels": dict, "device": str}
    whole = all(isinstance(getattr(machine, name), kind) for name, kind in words.items())
    if not whole or set(machine.kernels) != set(KERNELS) or not all(isinstance(error, str | None) for error in machine.kernels.values()):
        raise TypeError("it is no answer of the probe")
    return machine


def _key() -> str:
    import torch

    parts = [torch.__version__, torch.backends.cpu.get_cpu_capability(), _processor(), Path(__file__).read_text()]
    # What the child did not check before, no kept answer tells.
    parts += [Path(__file__).with_name("probe_child.py").read_text()]
    parts += [str(path())]
    parts += [os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith("flags")), "") + platform.machine()
    except OSError:
        return platform.processor() + platform.machine()


def _ask_child(families: tuple[str, ...] = tuple(FAMILIES)) -> Machine:
    code = f"from engine.kernels.probe_child import main; main({families!r})"
    names = [name for family in families for name in FAMILIES[family]]
    # In a session of its own: a Ctrl-C or hang-up that is meant for the run must not be taken for a crash, and be remembered.
    command = [sys.executable, "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, start_new_session=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        found = [json.loads(line) for line in lines]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return Machine(UNKNOWN, False, None, {name: f"the probe failed: {type(error).__name__}" for name in names})
    about: dict[str, Any] = next((f for f in found if "isa" in f), {"isa": UNKNOWN, "vnni": False})
    results = {f["kernel"]: f["error"] for f in found if "kernel" in f}
    crash = f"crashed the probe (exit code {done.returncode})"
    kernels = {name: results.get(name, crash) for name in names}
    measured = {f["saturates"] for f in found if f.get("saturates") is not None}
    unseen = tuple(family for family in families[1:] if not any(name in results for name in FAMILIES[family]))
    if unseen:
        # One family's crash says nothing about the next.
        rest = _ask_child(unseen)
        kernels |= rest.kernels
        measured |= {rest.saturates} - {None}
    saturates = any(measured) if measured else None
    # torch names what the processor has; only a sum that did not saturate shows that it is used.
    return Machine(about["isa"], about["vnni"] and saturates is False, saturates, kernels)
