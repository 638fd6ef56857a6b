"""A quantized model whose islands run on integer kernels, between the Python that calls them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from engine.errors import EngineError
from engine.lowering.graph.call import Call
from engine.lowering.graph.program import Program, Step
from engine.lowering.graph.runtime import QuantizedModel
from engine.lowering.islands.within import IslandForward, WithForwards
from engine.numerics.qtensor import QTensor


@dataclass(frozen=True)
class QuantizedIsland:
    """The island at ``path``: how it is called, with the sizes that it serves (``taken``), and what computes it."""

    path: str
    call: Call
    taken: Call
    model: QuantizedModel


class IslandsModel(WithForwards):
    """``root`` with its islands on integer kernels. It is called as ``root`` is. ``root`` itself is not changed, and shared: while this
    model runs it calls the integer forwards, and its own before and after. With ``complete`` the islands' modules hold their fp32
    weights, which compute what an island does not serve; else that raises EngineError."""

    def __init__(self, root: nn.Module, islands: Sequence[QuantizedIsland], complete: bool = True) -> None:
        forwards: dict[str, IslandForward] = {}
        for island in islands:
            island.model.patient = True
            plain = root.get_submodule(island.path).forward if complete else partial(_refuse, island)
            forwards[island.path] = IslandForward(island.call, island.taken, plain, partial(_flat, island.model))
        super().__init__(root, forwards)
        self.islands, self._counts = tuple(islands), forwards

    @property
    def placement(self) -> Mapping[str, tuple[str, str | None]]:
        """By layer node of every island, the kernel that computes it, and why no better one does."""
        return {name: where for island in self.islands for name, where in island.model.placement.items()}

    @property
    def step_kernel(self) -> str:
        """That of every island: they are asked for the same kernels."""
        return self.islands[0].model.step_kernel if self.islands else ""

    @property
    def simulated(self) -> bool:
        return any(island.model.simulated for island in self.islands)

    @property
    def program(self) -> Program:
        """The steps and layers of all islands, to be looked at: they do not compute one after the other."""
        programs = [island.model.program for island in self.islands]
        steps: tuple[Step, ...] = tuple(step for program in programs for step in program.steps)
        layers: dict[str, QTensor] = {name: weight for program in programs for name, weight in program.layers.items()}
        tensors = {name: tensor for program in programs for name, tensor in program.tensors.items()}
        return Program(steps, "", layers, tensors)

    @property
    def unplanned(self) -> list[str]:
        """What a person should know of how the islands ran until now."""
        told = [f"{island.path}: {text}" for island in self.islands for text in island.model.unplanned]
        for path, forward in self._counts.items():
            if forward.plain_calls:
                told.append(f"{path}: {forward.plain_calls} of {forward.calls} calls had inputs that its graph does not serve: in fp32")
        return told


def _refuse(island: QuantizedIsland, *args: Any, **kwargs: Any) -> Any:
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    shapes = ", ".join(f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" for x in given)
    raise EngineError(f"{island.path} takes {island.taken}, not {shapes}: that would need its fp32 weights, which the file lacks")


def _flat(model: QuantizedModel, inputs: tuple[Tensor, ...]) -> Any:
    return model.flat(*inputs)
