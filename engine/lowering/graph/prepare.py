"""The calibrated graph as a trainable one: fake-quantized weights and values exactly where the program has integers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from engine.kernels.base import compute
from engine.lowering.graph.convert import unit_parameters
from engine.lowering.graph.fake_quantize import FakeQuantActivation, FakeQuantWeight
from engine.lowering.graph.kinds import BATCH_NORMS, module_of
from engine.lowering.graph.layout import Layout, Unit
from engine.numerics.qparams import QParams
from engine.numerics.qtensor import QTensor


class QuantizedLayer(nn.Module):
    """A convolution or linear layer, with its batch normalization where there is one, on fake-quantized weights.

    The normalization is folded into the weights before they are rounded, as conversion will. Until it is frozen the
    batch's own statistics are used on the rescaled result (Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2).
    """

    def __init__(self, layer: nn.Module, norm: nn.Module | None, quantizer: FakeQuantWeight) -> None:
        super().__init__()
        self.layer, self.norm, self.quantizer = layer, norm, quantizer
        self.frozen = False

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.layer.weight  # type: ignore[assignment]
        bias: Tensor | None = self.layer.bias  # type: ignore[assignment]
        if self.norm is None:
            return compute(self.layer, x, self.quantizer(weight), bias)
        norm: Any = self.norm
        factor = torch.rsqrt(norm.running_var + norm.eps)
        shift = torch.zeros_like(factor)
        if norm.affine:
            factor, shift = factor * norm.weight, norm.bias
        folded = self.quantizer(weight * factor.reshape(-1, *[1] * (weight.dim() - 1)))
        offset = 0.0 if bias is None else bias
        if self.frozen or not self.training:
            return compute(self.layer, x, folded, shift + (offset - norm.running_mean) * factor)
        # A channel that the normalization has switched off has no scale to divide by.
        safe = torch.where(factor.abs() < 1e-6, torch.full_like(factor, 1e-6), factor)
        plain = compute(self.layer, x, folded, None) / safe.reshape(1, -1, *[1] * (weight.dim() - 2))
        if bias is not None:
            plain = plain + bias.reshape(1, -1, *[1] * (weight.dim() - 2))
        result: Tensor = norm(plain)
        return result


class Prepared:
    """``model`` is trained; ``grids`` and ``weights`` then give what conversion needs, and ``graph`` the float graph
    with the trained parameters."""

    def __init__(self, gm: fx.GraphModule, layout: Layout, grids: Mapping[str, QParams], weights: Mapping[str, QTensor]) -> None:
        self._original, self._layout = gm, layout
        self.model = copy.deepcopy(gm)
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        self._layers: dict[str, QuantizedLayer] = {}
        self._activations = {c.name: FakeQuantActivation(grids[c.name]) for c in layout.classes}
        nodes = {node.name: node for node in self.model.graph.nodes}
        for index, (name, module) in enumerate(self._activations.items()):
            self.model.add_module(f"grid_{index}", module)
            rounded = next(c for c in layout.classes if c.name == name)
            for member in rounded.members:
                if member in rounded.sources:
                    self._insert(nodes[member], f"grid_{index}")
        units = {unit.layer: unit for unit in layout.units}
        for name, start in weights.items():
            self._replace(nodes, name, units.get(name), start)
        self.model.graph.lint()
        self.model.recompile()

    def _insert(self, node: fx.Node, target: str) -> None:
        with self.model.graph.inserting_after(node):
            rounded = self.model.graph.call_module(target, (node,))
        node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)

    def _replace(self, nodes: dict[str, fx.Node], name: str, unit: Unit | None, start: QTensor) -> None:
        node = nodes[name]
        path, bn = str(node.target), nodes[unit.bn] if unit and unit.bn else None
        layer = module_of(node)
        assert layer is not None
        if not isinstance(layer, QuantizedLayer):
            layer = QuantizedLayer(layer, module_of(bn) if bn else None, FakeQuantWeight(start))
            self.model.set_submodule(path, layer)
        self._layers[name] = layer
        if bn:
            bn.replace_all_uses_with(node)
            self.model.graph.erase_node(bn)

    def freeze(self, frozen: bool) -> None:
        """Stop (or restart) the running statistics of every batch normalization."""
        for module in self.model.modules():
            if isinstance(module, QuantizedLayer):
                module.frozen = frozen
            if frozen and isinstance(module, BATCH_NORMS):
                module.eval()

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups: the steps learn without decay."""
        steps = {id(m.step) for m in self.model.modules() if isinstance(m, FakeQuantActivation | FakeQuantWeight)}
        rest = [p for p in self.model.parameters() if id(p) not in steps]
        return [
            {"params": [p for p in rest if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
            {"params": [p for p in self.model.parameters() if id(p) in steps], "weight_decay": 0.0},
        ]

    def grids(self) -> dict[str, QParams]:
        return {name: module.grid() for name, module in self._activations.items()}

    def graph(self) -> fx.GraphModule:
        """The float graph, on the CPU, with the trained weights, biases and normalizations."""
        trained = copy.deepcopy(self._original).cpu()
        nodes = {node.name: node for node in trained.graph.nodes}
        state = {name: value.detach().cpu() for name, value in self.model.state_dict().items()}
        own = trained.state_dict()
        bns = {unit.layer: unit.bn for unit in self._layout.units if unit.bn}
        for name in self._layers:
            path = str(nodes[name].target)
            own.update({f"{path}.{k}": state[f"{path}.layer.{k}"] for k in ("weight", "bias") if f"{path}.layer.{k}" in state})
            if name in bns:
                norm = str(nodes[bns[name]].target)
                own.update({f"{norm}.{k.rpartition('.')[2]}": v for k, v in state.items() if k.startswith(f"{path}.norm.")})
        own.update({name: state[name] for name in own if name in state})
        trained.load_state_dict(own)
        return trained.eval()

    def weights(self, graph: fx.GraphModule) -> dict[str, QTensor]:
        """Each layer's integers, from the trained ``graph`` and the learned steps."""
        units = {unit.layer: unit for unit in self._layout.units}
        nodes = {node.name: node for node in graph.graph.nodes}
        found = {}
        for name, layer in self._layers.items():
            weight = unit_parameters(graph, units[name])[0] if name in units else module_of(nodes[name]).weight  # type: ignore[union-attr]
            assert isinstance(weight, Tensor)
            found[name] = layer.quantizer.cpu().quantized(weight)
        return found
