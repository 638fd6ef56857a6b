"""A graph that is called as the model it was traced from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from engine.lowering.graph.call import Call, call_of


class Structured(nn.Module):
    """Takes the model's arguments and returns what the model returns, in tuples, lists, dicts and ``Outputs``. With ``contiguous``
    tensors are laid out row-major first."""

    def __init__(self, graph: nn.Module, call: Call | None, contiguous: bool = False) -> None:
        super().__init__()
        self.graph, self.call, self.contiguous = graph, call, contiguous

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = args if self.call is None else self.call.flatten(args, kwargs)
        raw = self.flat(*inputs)
        return raw if self.call is None else self.call.rebuild(raw if isinstance(raw, tuple) else (raw,))

    def flat(self, *inputs: Tensor) -> Any:
        """The graph's results for its inputs in order: one tensor, or a tuple of them."""
        return self.graph(*(x.contiguous() for x in inputs)) if self.contiguous else self.graph(*inputs)


def structured(gm: fx.GraphModule, contiguous: bool = False) -> nn.Module:
    """``gm`` called as its model is: itself where a graph is called so too."""
    call = call_of(gm.graph)
    plain = call is None or call.plain
    return gm if plain and not contiguous else Structured(gm, None if plain else call, contiguous)


def flat(form: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The results in order of a form of a model for its inputs in order."""
    raw = form.flat(*inputs) if isinstance(form, Structured) else form(*inputs)
    return raw if isinstance(raw, tuple) else (raw,)
