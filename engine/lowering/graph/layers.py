"""The layers of a graph, as the planner takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn

from engine.kernels.base import geometry
from engine.kernels.probe import Machine
from engine.lowering.graph.fuse import find_pairs
from engine.lowering.graph.kinds import BATCH_NORMS, kind, module_of
from engine.lowering.graph.subpixel import type_name
from engine.planning import planner
from engine.planning.layer import Layer, Output
from engine.planning.layer_speed import UNTIMED, Pace
from engine.planning.legality import NO_KERNEL, NOT_FOLDED
from engine.planning.plan import Plan
from engine.recipe.capabilities import NOTHING, Role, of_network
from engine.recipe.spec import Rule

_ROLES: Mapping[str, Role] = {"conv": "convolution", "linear": "linear"}


def plan(
    gm: fx.GraphModule,
    machine: Machine,
    preset: str = "default",
    rules: Sequence[Rule] = (),
    time_share: Mapping[str, float] | None = None,
    paces: Mapping[str, Pace] | None = None,
    outputs: Mapping[str, Output] | None = None,
    others: Sequence[Layer] = (),
) -> Plan:
    """The plan of ``gm``, and of ``others`` outside of it, on ``machine``. Its rows do not know their ``kernel``: that takes the layout
    of the whole plan."""
    return planner.plan((*layers(gm, time_share, paces, outputs), *others), preset, rules, machine.activation_bits)


def layers(
    gm: fx.GraphModule, time_share: Mapping[str, float] | None = None, paces: Mapping[str, Pace] | None = None,
    outputs: Mapping[str, Output] | None = None,
) -> tuple[Layer, ...]:  # fmt: skip
    """Every module of ``gm`` that holds parameters, in the order of its first call.

    ``time_share`` maps node names to their part (0..1) of the fp32 time, ``paces`` layers to their speed here, and ``outputs`` those that
    give outputs to what is known of these.
    """
    total = sum(p.numel() for p in gm.parameters()) or 1
    pairs = find_pairs(gm)
    folded = {pair.bn: pair.conv for pair in pairs if pair.reason is None}
    refused = {pair.bn: pair.reason for pair in pairs if pair.reason is not None}
    found = []
    for path, node in _first_calls(gm).items():
        module = module_of(node)
        assert module is not None
        role = _ROLES.get(kind(node))
        capabilities = of_network(role) if role else NOTHING
        share = sum((time_share or {}).get(n.name, 0.0) for n in gm.graph.nodes if n.op == "call_module" and n.target == path)
        params = sum(p.numel() for p in module.parameters())
        obstacle = why_not(module) if capabilities.role != "none" else None if path in folded else _no_kernel(path, module, refused)
        found.append(Layer(
            path, type_name(module), node.name, params, _weight_shape(module), capabilities, params / total, share, obstacle,
            folded.get(path), output=(outputs or {}).get(path), pace=(paces or {}).get(path, UNTIMED),
        ))  # fmt: skip
    return tuple(found)


def why_not(module: nn.Module) -> str | None:
    """Why a convolution or linear layer cannot be quantized at all, whatever is asked."""
    if any(p.dtype != torch.float32 for p in module.parameters()):
        return f"its parameters are {next(module.parameters()).dtype}, not float32"
    try:
        geometry(module)
    except ValueError as problem:
        return f"no integer kernel takes {problem}"
    return None


def _no_kernel(path: str, module: nn.Module, refused: Mapping[str, str]) -> str:
    """Why a module that is no convolution and no linear layer stays in fp32."""
    if isinstance(module, BATCH_NORMS):
        return f"{NOT_FOLDED}{refused.get(path, 'no convolution or linear layer is right before it')}"
    if type(module).__module__.partition(".")[0] != "torch":
        return "stays whole: its forward could not be traced"
    return NO_KERNEL


def _weight_shape(module: nn.Module) -> tuple[int, ...]:
    weight = getattr(module, "weight", None)
    return tuple(weight.shape) if isinstance(weight, torch.Tensor) else ()


def _first_calls(gm: fx.GraphModule) -> dict[str, fx.Node]:
    found: dict[str, fx.Node] = {}
    for node in gm.graph.nodes:
        module = module_of(node)
        if module is not None and any(True for _ in module.parameters()):
            found.setdefault(str(node.target), node)
    return found
