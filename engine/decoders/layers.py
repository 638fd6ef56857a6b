"""What computes a quantized matrix on this machine. A kernel is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.decoders.dynamic import Dynamic
from engine.decoders.kernel import Asked, MatrixKernel, asked
from engine.decoders.rows import Rows
from engine.decoders.static import Static
from engine.decoders.stored import Stored
from engine.decoders.weight_only import WeightOnly
from engine.kernels.probe import Machine
from engine.language.linears import Kind
from engine.spec import LayerSpec

# Best first; the last of each kind takes what is left.
KERNELS: tuple[MatrixKernel, ...] = (Dynamic(), Static(), WeightOnly(), Rows(), Dynamic(simulated=True), Static(simulated=True), Stored())
FP32 = "torch fp32"


@dataclass(frozen=True)
class Choice:
    """``reason`` is a sentence that belongs beside the ``label``, or None: what a better kernel lacked, what this one changes."""

    kernel: MatrixKernel
    label: str
    reason: str | None
    storage_only: bool


def choose(asked: Asked, machine: Machine) -> Choice:
    """The kernel for a matrix; nothing needs to be rounded yet."""
    refused: list[str] = []
    for kernel in KERNELS:
        why = kernel.refuses(asked, machine)
        if why is None:
            break
        if _same_kind(kernel, asked):
            refused.append(why)
    else:  # pragma: no cover - the last kernels take everything
        raise AssertionError(f"no kernel takes {asked}")
    said = filter(None, (*refused, kernel.note(asked, machine))) if kernel.storage_only else filter(None, (kernel.note(asked, machine),))
    return Choice(kernel, kernel.label(asked, machine), "; ".join(dict.fromkeys(said)) or None, kernel.storage_only)


def _same_kind(kernel: MatrixKernel, asked: Asked) -> bool:
    """Whether its refusal is worth telling: it computes matrices of this kind, with activations of this kind."""
    if asked.kind == "Embedding":
        return isinstance(kernel, Rows)
    return asked.activations is None and isinstance(kernel, WeightOnly)


def label(spec: LayerSpec, kind: Kind, shape: tuple[int, int], machine: Machine) -> str:
    """The words for what would compute a matrix that becomes ``spec``."""
    return FP32 if spec.weights is None else choose(asked(spec, kind, shape), machine).label


def labels(machine: Machine) -> Callable[[LayerSpec, Kind, tuple[int, int]], str]:
    """``label`` on that machine, for a plan."""
    return lambda spec, kind, shape: label(spec, kind, shape, machine)
