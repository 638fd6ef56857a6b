"""Names to factories. Importing this module costs nothing: factories are imported when they are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class ModelEntry:
    """``factory`` is ``module:callable`` and takes the number of classes; ``packaged`` maps a data set's name to the
    weights file that ships for it; ``shape`` is the (C, H, W) the model takes."""

    name: str
    description: str
    factory: str
    shape: tuple[int, int, int]
    packaged: Mapping[str, str] = field(default_factory=dict)

    def build(self, classes: int) -> nn.Module:
        module, _, attribute = self.factory.partition(":")
        model: nn.Module = getattr(import_module(module), attribute)(classes)
        return model

    def weights_for(self, data: str) -> Path | None:
        name = self.packaged.get(data)
        return WEIGHTS / name if name else None


ENTRIES: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry(
            name="simplecnn",
            description="two convolutions with batch normalization, two linear layers",
            factory="engine.models.simplecnn:SimpleCNN",
            shape=(3, 32, 32),
            packaged={"digits": "simplecnn-digits.safetensors", "cifar10": "simplecnn-cifar10.safetensors"},
        ),
    )
}


def find(name: str) -> ModelEntry:
    """The entry of that name. Raises UsageError with the nearest names when there is none."""
    if name not in ENTRIES:
        raise UsageError(
            f"model {name!r} is not known: {nearest(name, list(ENTRIES))}; your own is package.module:factory or path/file.py:factory"
        )
    return ENTRIES[name]
