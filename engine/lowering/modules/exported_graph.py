"""The graph that ``torch.export`` sees of a decoder: every operation of one window, without a cache."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError, one_line
from engine.events.event import NodeRow


class _Logits(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return found


def exported_rows(model: Any, ids: Tensor) -> tuple[NodeRow, ...]:
    """A row for each operation on ``ids`` (1, T), in order; inputs that are parameters are left out. Raises EngineError where
    ``torch.export`` does not take the model."""
    told = logging.getLogger("torch.export")
    level = told.level
    told.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(_Logits(model), (ids,), strict=False)
    except Exception as error:
        raise EngineError(f"torch.export does not take {type(model).__name__} ({one_line(error, 160)}): leave --graph out") from error
    finally:
        told.setLevel(level)
    lifted = set(program.graph_signature.inputs_to_parameters) | set(program.graph_signature.inputs_to_buffers)
    return tuple(_row(node) for node in program.graph.nodes if node.name not in lifted)


def _row(node: Any) -> NodeRow:
    value = node.meta.get("val")
    shape = "×".join(map(str, value.shape)) if isinstance(value, Tensor) else ""
    return NodeRow(node.op, node.name, str(node.target), ", ".join(map(str, node.args)), ", ".join(map(str, node.kwargs)), shape, 0)
