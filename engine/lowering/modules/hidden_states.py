"""Hidden states of many windows in files: each is mapped when a block reads it, and is no memory of the program's before and after."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.lowering.modules.capture import Batch
from engine.paths import unwritable

# Hidden states of that many bytes stay in memory: beside a block they do not count.
FITTING = 256 * 2**20


class StoredBatch(Batch):
    """A batch whose ``hidden`` and ``original`` are read from files below ``place`` and written there."""

    def __init__(self, batch: Batch, place: Path, folder: TemporaryDirectory[str]) -> None:
        # The files go with the last batch that needs them.
        self._place, self._folder = place, folder
        self._shapes: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self._device = batch.hidden.device
        super().__init__(batch.hidden, batch.keep, batch.others, batch.original, batch.original_others)

    @property
    def hidden(self) -> Tensor:
        found = self._read("hidden")
        assert found is not None
        return found

    @hidden.setter
    def hidden(self, value: Tensor) -> None:
        self._write("hidden", value)

    @property
    def original(self) -> Tensor | None:
        return self._read("original")

    @original.setter
    def original(self, value: Tensor | None) -> None:
        if value is not None:
            self._write("original", value)

    def _read(self, name: str) -> Tensor | None:
        if name not in self._shapes:
            return None
        shape, dtype = self._shapes[name]
        try:
            # Private: what a block might write into its input does not reach the file.
            mapped = torch.from_file(str(self._file(name)), shared=False, size=shape.numel(), dtype=dtype)
        except (OSError, RuntimeError) as error:
            raise EngineError(f"{self._file(name)} cannot be read: start the run again") from error
        return mapped.view(shape).to(self._device)

    def _write(self, name: str, value: Tensor) -> None:
        path, fresh = self._file(name), self._file(f"{name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                file.write(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            os.replace(fresh, path)
        except OSError as error:
            raise unwritable(path, error) from error
        self._shapes[name] = (value.shape, value.dtype)

    def _file(self, name: str) -> Path:
        return self._place.with_name(f"{self._place.name}.{name}")


class Store:
    """Where batches are kept: in memory, or in files below ``place`` where their hidden states, ``total`` bytes together, do not fit.
    Masks and positions that are equal from batch to batch are held once. The files go when nothing needs them any more; those of a
    process that was killed go when the next one begins. Raises EngineError where the disk has no room for them."""

    def __init__(self, place: Path, total: int) -> None:
        self._known: list[Tensor] = []
        self._count = 0
        self._folder: TemporaryDirectory[str] | None = None
        for old in place.parent.glob(f"{place.name}-*"):
            shutil.rmtree(old, ignore_errors=True)
        if total <= FITTING:
            return
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(place.parent).free
            if free < total:
                raise EngineError(
                    f"{place.parent} has {free / 1e9:.1f} GB free, and the hidden states of the text need {total / 1e9:.1f} GB: "
                    "give --out on another disk, or less text with data.limit and data.calibration"
                )
            self._folder = TemporaryDirectory(prefix=f"{place.name}-", dir=place.parent, ignore_cleanup_errors=True)
        except OSError as error:
            raise unwritable(place, error) from error

    def keep(self, batch: Batch) -> Batch:
        """The batch as it is kept."""
        self.share(batch)
        if self._folder is None:
            return batch
        self._count += 1
        return StoredBatch(batch, Path(self._folder.name) / f"{self._count:06d}", self._folder)

    def share(self, batch: Batch) -> None:
        """Let what is given beside the hidden states be what earlier batches have, where it is equal."""
        seen: dict[int, Any] = {}

        def own(value: Any) -> Any:
            # What blocks share is looked at once.
            if id(value) not in seen:
                seen[id(value)] = self._one(value)
            return seen[id(value)]

        for others in (batch.others, batch.original_others):
            others[:] = [
                (tuple(own(given) for given in args), {name: own(given) for name, given in named.items()}) for args, named in others
            ]

    def _one(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._one(inner) for inner in value)
        if not isinstance(value, Tensor):
            return value
        same = next((held for held in self._known if _equal(held, value)), None)
        if same is None:
            self._known.append(value)
        return value if same is None else same


def _equal(first: Tensor, second: Tensor) -> bool:
    alike = first.shape == second.shape and first.dtype == second.dtype and first.device == second.device
    return alike and (first is second or torch.equal(first, second))
