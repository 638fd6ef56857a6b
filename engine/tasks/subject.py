"""A model with the task that it is measured by: what a run works on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from engine.numerics.memory import content
from engine.tasks.base import Batch, Task

if TYPE_CHECKING:
    from engine.models.unread import Source


_ROOM = 4


@dataclass(frozen=True)
class Subject:
    """``example`` is a first batch of the training split; ``weights`` says where they come from, ``fingerprint`` is a hash of them.
    ``lowering`` names the way to integers. ``environment`` is what the report's ``environment`` tells besides, ``source`` the folder
    that the model came from, None where it came from none. ``unread`` reads the weights of a model that has
    none in memory."""

    model: nn.Module
    task: Task
    example: Batch
    device: str
    weights: str
    fingerprint: str
    lowering: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    source: Path | None = None
    unread: Source | None = None

    @property
    def bytes(self) -> int:
        """Of the model's parameters and buffers, as they are in memory."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.model.state_dict().values())

    @property
    def room(self) -> int:
        """Bytes on disk that a run may need, as far as is known before its plan: the model is written twice at most, checkpoints with
        optimizer state included; one that is read block by block is not trained, and its integers are a byte each at most."""
        return self.bytes // 2 if self.unread else _ROOM * self.bytes


def fingerprint(model: nn.Module) -> str:
    """16 hex digits that tell a model's parameters and buffers apart."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + content(tensor))
    return digest.hexdigest()[:16]
