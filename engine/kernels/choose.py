"""The kernels to try on a machine, best first. A new kernel is one file and one line here."""

from __future__ import annotations

from engine.kernels.base import Kernel
from engine.kernels.dnnl.layers import Direct
from engine.kernels.probe import Machine
from engine.kernels.simulate import Simulate
from engine.kernels.x86_int8 import OneDNN, OneDNNThenTorch


def kernels_for(machine: Machine) -> list[Kernel]:
    """Integer kernels that the probe found exact, then simulation as the last resort."""
    found: list[Kernel] = [kernel for kernel in (Direct(), OneDNN(), OneDNNThenTorch()) if machine.runs(kernel.name)]
    return [*found, Simulate()]


def why_simulated(machine: Machine) -> str | None:
    """A sentence where no integer kernel runs here."""
    if machine.integer:
        return None
    wrong = "; ".join(f"{name}: {error}" for name, error in machine.kernels.items() if error)
    return f"no integer kernel runs on this machine ({wrong}): the result is simulated, its speed says nothing"
