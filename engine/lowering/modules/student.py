"""The decoder in training: integers and scales that learn in the place of its matrices, its norms and biases beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import UsageError
from engine.kernels.matrix.kind import kind_of
from engine.lowering.modules.latent import Latent
from engine.lowering.modules.quantized import apply
from engine.numerics.qtensor import QTensor, from_tensors


@dataclass(frozen=True)
class State:
    """One epoch's integers by module path, and the other tensors that were trained, by name."""

    weights: dict[str, QTensor]
    others: dict[str, Tensor]

    def write(self) -> dict[str, Any]:
        """Tensors and plain values, as a checkpoint holds them."""
        packed = {path: {"tensors": weight.to_tensors(), "meta": weight.meta()} for path, weight in self.weights.items()}
        return {"weights": packed, "others": self.others}

    @staticmethod
    def read(state: Mapping[str, Any]) -> State:
        """The inverse of ``write``."""
        found = {path: from_tensors(parts["tensors"], parts["meta"]) for path, parts in state["weights"].items()}
        return State(found, dict(state["others"]))

    @torch.no_grad()
    def put(self, model: nn.Module) -> None:
        """Write what the integers stand for, and the other tensors, into ``model``."""
        apply(model, self.weights)
        named = dict(model.named_parameters())
        for name, tensor in self.others.items():
            named[name].copy_(tensor)


class Student:
    """``model``, a transformers model that becomes the student's own, with ``weights`` by module path. Paths that share a parameter,
    as a tied head does, share their integers. Raises UsageError where there are no weights."""

    def __init__(self, model: Any, weights: Mapping[str, QTensor]) -> None:
        if not weights:
            raise UsageError("nothing is quantized: there are no weights to fine-tune")
        self.model = model.eval().requires_grad_(False)
        self._latents: dict[str, Latent] = {}
        self._first: dict[str, str] = {}
        holders: dict[int, str] = {}
        for path, weight in weights.items():
            held = model.get_submodule(path).weight
            self._first[path] = holders.setdefault(id(held), path)
            if self._first[path] == path:
                self._latents[path] = Latent(weight.to(held.device)).to(held.device)
        self._transposed = {path for path in self._latents if kind_of(model.get_submodule(path)) == "Conv1D"}
        self._others = {name: p.requires_grad_(True) for name, p in model.named_parameters() if p.dim() <= 1}
        self.settle()

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (N, T) to logits (N, T, vocabulary), differentiable in all that is trained."""
        made = {f"{path}.weight": latent().t() if path in self._transposed else latent() for path, latent in self._latents.items()}
        out = torch.func.functional_call(self.model, made, kwargs={"input_ids": ids, "use_cache": False})
        found: Tensor = out.logits
        return found

    def settle(self) -> None:
        """Write what the integers stand for into the model, which ``logits`` runs."""
        apply(self.model, {path: latent.stored() for path, latent in self._latents.items()})

    def logits(self, ids: Tensor) -> Tensor:
        """What the model of the last ``settle`` answers."""
        found: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return found

    def bound(self) -> None:
        for latent in self._latents.values():
            latent.bound()

    def state(self) -> State:
        """A copy of what was learned."""
        stored = {path: latent.stored() for path, latent in self._latents.items()}
        others = {name: tensor.detach().clone() for name, tensor in self._others.items()}
        return State({path: stored[first] for path, first in self._first.items()}, others)

    def groups(self, places: float, scales: float) -> list[dict[str, Any]]:
        """The trained tensors for an optimizer, each group with the ``factor`` of its learning rate; a factor of 0 is left out."""
        latents = list(self._latents.values())
        several: list[tuple[float, list[nn.Parameter]]] = [
            (places, [latent.place for latent in latents]),
            (scales, [latent.growth for latent in latents]),
            (1.0, list(self._others.values())),
        ]
        return [{"params": some, "factor": factor} for factor, some in several if factor and some]

    def state_dict(self) -> dict[str, Any]:
        return {"latents": {path: latent.state_dict() for path, latent in self._latents.items()}, "others": dict(self._others)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError or RuntimeError for the state of another model."""
        for path, latent in self._latents.items():
            latent.load_state_dict(state["latents"][path])
        for name, parameter in self._others.items():
            parameter.copy_(state["others"][name])
