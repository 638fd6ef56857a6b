"""A layer as a lowering gives it to the planner. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from engine.planning.layer_speed import UNTIMED, Pace
from engine.recipe.capabilities import NOTHING, Capabilities
from engine.recipe.spec import LayerSpec


def no_kernel(spec: LayerSpec) -> str:
    """The kernel's name where it is not known before the whole plan is."""
    return ""


@dataclass(frozen=True)
class Output:
    """What a task says of the outputs that a layer gives (``box or score output``), and the SQNR in dB that 8 bits alone leave of them."""

    what: str
    sqnr_db: float


@dataclass(frozen=True)
class Layer:
    """One module that holds parameters.

    ``path`` is the module's, ``kind`` the name of its class, ``node`` the first node that calls it; ``weight_shape`` is (out, in,
    ...), ``params_share`` and ``time_share`` its parts (0..1) of the model's parameters and of its fp32 time. ``capabilities`` are
    what can be had of it, and ``obstacle`` says why nothing can, whatever is asked. ``folds_into`` names the layer that takes it in
    where that one computes on integers; ``tied`` an earlier layer whose matrix it shares. Rules of a recipe are for ``ruled`` layers
    alone. ``output`` is for layers that give outputs which the task calls sensitive. ``pace`` is its speed alone on this machine, and
    ``kernel`` names what would compute it as a spec says.
    """

    path: str
    kind: str
    node: str
    params: int
    weight_shape: tuple[int, ...]
    capabilities: Capabilities = NOTHING
    params_share: float = 0.0
    time_share: float = 0.0
    obstacle: str | None = None
    folds_into: str | None = None
    tied: str | None = None
    ruled: bool = True
    output: Output | None = None
    pace: Pace = UNTIMED
    kernel: Callable[[LayerSpec], str] = field(default=no_kernel, compare=False)

    @property
    def quantizable(self) -> bool:
        """Whether layers of its role can be quantized."""
        return self.capabilities.role != "none"
