"""What kind of matrix a module holds."""

from __future__ import annotations

from typing import Literal

from torch import nn

Kind = Literal["Linear", "Conv1D", "Embedding"]


def kind_of(module: nn.Module) -> Kind | None:
    """What kind of matrix ``module`` holds, None for none that is known. A ``Linear`` with a forward of its own, as a router that
    returns what it has chosen, is none: nothing else can stand in its place."""
    if isinstance(module, nn.Linear):
        return "Linear" if type(module).forward is nn.Linear.forward else None
    if isinstance(module, nn.Embedding):
        return "Embedding"
    # By name: its module takes seconds to import, and a model that holds one has imported it.
    return "Conv1D" if type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils" else None
