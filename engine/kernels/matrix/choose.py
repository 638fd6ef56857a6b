"""What computes a quantized matrix on this machine. A kernel is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.kernels.matrix.base import Asked, MatrixKernel, asked
from engine.kernels.matrix.dynamic import Dynamic
from engine.kernels.matrix.floats import Floats
from engine.kernels.matrix.int_mm import IntMM
from engine.kernels.matrix.kind import Kind
from engine.kernels.matrix.nibbles import Nibbles
from engine.kernels.matrix.on_gpu import OnGpu
from engine.kernels.matrix.rows import Rows
from engine.kernels.matrix.static import Static
from engine.kernels.matrix.stored import Stored
from engine.kernels.matrix.streamed import Streamed, StreamedIntegers
from engine.kernels.matrix.weight_only import WeightOnly
from engine.kernels.probe import Machine
from engine.recipe.spec import LayerSpec

# Best first; the last of each kind takes what is left.
KERNELS: tuple[MatrixKernel, ...] = (
    IntMM(dynamic=True), IntMM(dynamic=False), OnGpu(), StreamedIntegers(), Dynamic(), Static(), Streamed(), Nibbles(), WeightOnly(),
    Rows(), Floats(), Dynamic(simulated=True), Static(simulated=True), Stored(),
)  # fmt: skip
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
    kernel = next(kernel for kernel in KERNELS if kernel.refuses(asked, machine) is None)
    said = [*(_lacking(asked, machine) if isinstance(kernel, Stored) else ()), kernel.note(asked, machine)]
    return Choice(kernel, kernel.label(asked, machine), "; ".join(filter(None, said)) or None, kernel.storage_only)


def _lacking(asked: Asked, machine: Machine) -> list[str | None]:
    """Why no faster kernel computes a matrix with float activations: the refusal of the one that was meant for it."""
    meant = Rows if asked.kind == "Embedding" else Nibbles if asked.weights.bits <= 4 and not asked.int8 else WeightOnly
    return [kernel.refuses(asked, machine) for kernel in KERNELS if isinstance(kernel, meant)]


def label(spec: LayerSpec, kind: Kind, shape: tuple[int, int], machine: Machine, plain: bool = True) -> str:
    """The words for what would compute a matrix that becomes ``spec``; ``plain`` as in ``Asked``."""
    return FP32 if spec.weights is None else choose(asked(spec, kind, shape, plain), machine).label


def labels(machine: Machine) -> Callable[[LayerSpec, Kind, tuple[int, int], bool], str]:
    """``label`` on that machine, for a plan."""
    return lambda spec, kind, shape, plain: label(spec, kind, shape, machine, plain)
