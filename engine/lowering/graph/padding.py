"""Padding that no kernel has, as a step of its own before a layer that pads with nothing."""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from engine.lowering.graph.kinds import CONVOLUTIONS, module_of

# ``F.pad``'s modes of padding modules that torch.nn has for one, two and three dimensions.
_MODES = {"Zero": "constant", "Constant": "constant", "Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}
_MODULES: dict[type[nn.Module], str] = {
    found: mode
    for name, mode in _MODES.items()
    for rank in (1, 2, 3)
    if (found := getattr(nn, f"{name}Pad{rank}d", None)) is not None
}  # fmt: skip


def pads_as_steps(gm: fx.GraphModule) -> tuple[str, ...]:
    """Rewrite, in place, each convolution whose padding mode is not ``zeros``, or whose padding ``same`` is wider on one side, as
    ``F.pad`` and a convolution without padding; and padding modules as ``F.pad``. Returns the convolutions' paths."""
    wider: dict[str, tuple[tuple[int, ...], str]] = {}
    for node in list(gm.graph.nodes):
        module, path = module_of(node), str(node.target)
        if type(module) in CONVOLUTIONS and not _hooked(module):
            found = wider.get(path) or _own_padding(module)
            if found is None or len(node.args) != 1 or node.kwargs:
                continue
            if path not in wider:
                wider[path] = found
                gm.set_submodule(path, _without_padding(module))
            with gm.graph.inserting_before(node):
                padded = _pad(gm.graph, node.args[0], *found, 0.0)
            node.args = (padded,)
        elif type(module) in _MODULES and not _hooked(module) and len(node.args) == 1:
            assert module is not None
            with gm.graph.inserting_before(node):
                padded = _pad(gm.graph, node.args[0], module.padding, _MODULES[type(module)], getattr(module, "value", 0.0))
            padded.meta = dict(node.meta)
            node.replace_all_uses_with(padded)
            gm.graph.erase_node(node)
    gm.recompile()
    return tuple(wider)


def _own_padding(module: Any) -> tuple[tuple[int, ...], str] | None:
    """Padding as ``F.pad`` takes it, the last dimension first, and its mode; None where a kernel pads by itself."""
    same = module.padding == "same"
    total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if module.padding_mode == "zeros":
        if not same or not any(t % 2 for t in total):
            return None
        mode = "constant"
    else:
        mode = module.padding_mode
    if module.padding == "valid":
        return None
    sides = [(t // 2, t - t // 2) for t in total] if same else [(p, p) for p in module.padding]
    pads = tuple(side for pair in reversed(sides) for side in pair)
    return (pads, mode) if any(pads) or mode != "constant" else None


def _without_padding(module: Any) -> nn.Module:
    plain: Any = copy.copy(module)
    plain.padding, plain.padding_mode = (0,) * len(module.kernel_size), "zeros"
    plain._reversed_padding_repeated_twice = [0] * (2 * len(module.kernel_size))
    return plain  # type: ignore[no-any-return]


def _pad(graph: fx.Graph, read: Any, pads: Any, mode: str, value: Any) -> fx.Node:
    """A step that pads ``read``; zeros are told without a value, as those who look for them expect."""
    more = {} if mode != "constant" or not value else {"value": value}
    node = graph.call_function(F.pad, (read, tuple(pads), mode), more)
    shape = read.meta.get("shape")
    if shape is not None:
        sizes = list(shape)
        for i in range(len(pads) // 2):
            if sizes[-1 - i] is not None:
                sizes[-1 - i] += pads[2 * i] + pads[2 * i + 1]
        node.meta = {**{key: value for key, value in read.meta.items() if key == "dtype"}, "shape": tuple(sizes)}
    return node


def _hooked(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
