"""A decoder read back from its file, for scripts: token ids to logits, and text continued."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.lowering.modules.artifact import DecoderFile, check, opened, read, told_of
from engine.lowering.modules.by_block import logits_by_block, on_kernels, unfilled
from engine.lowering.modules.quantized import QuantizedDecoder
from engine.lowering.modules.rounded_inputs import rounded as rounded
from engine.lowering.modules.rounded_inputs import rounding as rounding
from engine.machine.memory import available
from engine.models.memory import changeable

# The part of the memory that a decoder in float32 may take.
FITTING = 0.8


@dataclass(frozen=True)
class LoadedDecoder:
    """Computes in float32 with what the integers stand for; where the recipe rounds activations, they are rounded as it says.
    ``on_kernels`` gives what computes with the integers themselves. Of ``file`` nothing is in memory before it is used.

    ``recipe`` is YAML, ``isa`` the instruction set of the machine that made the file."""

    file: DecoderFile
    recipe: str
    isa: str

    @cached_property
    def decoder(self) -> QuantizedDecoder:
        """The whole of it in memory, in float32 beside the integers."""
        return read(self.file.path)

    def __call__(self, ids: Tensor) -> Tensor:
        """Token ids (N, T) or (T,) to float32 logits (N, T, vocabulary). A decoder that does not fit in memory in float32 is read block by
        block for each call. Raises EngineError for ids outside of the vocabulary."""
        rows = ids if ids.dim() == 2 else ids[None]
        vocabulary = int(self._model.get_input_embeddings().weight.shape[0])
        if rows.is_floating_point() or rows.dim() != 2 or not rows.numel() or int(rows.min()) < 0 or int(rows.max()) >= vocabulary:
            raise EngineError(f"token ids of shape {tuple(ids.shape)} are not integers (N, T) from 0 to {vocabulary - 1}")
        if "decoder" not in self.__dict__ and not self._fits:
            with told_of(self.file.path):
                return torch.cat([logits_by_block(self.file, [row[None]])[0] for row in rows])
        decoder = self.decoder
        with torch.inference_mode(), rounding(decoder):
            found: Tensor = decoder.twin(input_ids=rows, use_cache=False).logits
        return changeable(found)

    @cached_property
    def _model(self) -> Any:
        return unfilled(self.file)

    @property
    def _fits(self) -> bool:
        """Whether the decoder in float32, beside its integers, leaves memory for others."""
        room = available()
        # A cache of codes belongs to the whole model.
        return (
            room is None
            or self.file.about.get("cache") is not None
            or 5 * sum(parameter.numel() for parameter in self._model.parameters()) < FITTING * room
        )

    def on_kernels(self, device: str = "cpu") -> Any:
        """A transformers model on the integer kernels of this machine, or of its GPU for ``cuda``; for inference alone. It shares nothing
        with this one. The kernels are tried before, which takes some seconds the first time. Block after block goes from the file to the
        kernels: the decoder in float32 is never in memory."""
        from engine.kernels.gpu.probe import seen_from
        from engine.kernels.probe import probe

        if device != "cpu" and not torch.cuda.is_available():
            raise EngineError(f"{device}: torch sees no GPU here: leave the device out, or look at `qtui doctor`")
        with told_of(self.file.path):
            return on_kernels(self.file, seen_from(probe(), device))


def load(path: Path) -> LoadedDecoder:
    """Every tensor of the file is judged, one after the other. Raises EngineError as ``artifact.read`` does."""
    file = opened(path)
    check(file)
    return LoadedDecoder(file, str(file.about.get("recipe", "")), str(file.about.get("isa", "")))
