"""What a format is given to write, and what it gives back to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.tasks.base import Batch, Forward, forward_of
from engine.tasks.decode_timing import Step


@dataclass(frozen=True)
class ExportContext:
    """What exports of one model are made from.

    ``model`` is the quantized model in the form of its ``lowering``: the program's executor of ``graph``, the ``QuantizedDecoder`` of
    ``modules``. ``inputs`` are training items, two or more, for formats that calibrate or trace; None where none does. ``whole`` maps
    module paths to the fp32 modules, for those that stayed whole; ``source`` is the folder that the model came from, for its tokenizer.
    ``recipe`` is YAML, ``isa`` the probe's word for the instruction set. ``reference`` computes what was measured; without one the
    model itself does. ``threads`` are those that runtimes take.
    """

    model: Any
    inputs: Batch | None = None
    whole: Mapping[str, nn.Module] = field(default_factory=dict)
    recipe: str = ""
    isa: str = ""
    name: str = "model"
    lowering: str = "graph"
    source: Path | None = None
    reference: Forward | None = None
    threads: int = field(default_factory=torch.get_num_threads)

    @property
    def measured(self) -> Forward:
        """The measured model as a function of a batch."""
        return self.reference or forward_of(self.model)

    @property
    def about(self) -> dict[str, str]:
        """What a file says of where it comes from."""
        return {"qtui": self.name, "recipe": self.recipe, "isa": self.isa}

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The inputs of a program, in order, on ``inputs``."""
        assert self.inputs is not None
        found: tuple[Tensor, ...] = self.model.inputs_of(self.inputs)
        return found

    @property
    def count(self) -> int:
        """How many items ``tensors`` hold."""
        return next((len(x) for x, free in zip(self.tensors, self.model.per_item, strict=True) if free), 1)

    def items(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """``tensors`` of the items from ``start`` to ``stop``; what is the same for all items is given whole."""
        return tuple(x[start:stop] if free else x for x, free in zip(self.tensors, self.model.per_item, strict=True))


@dataclass(frozen=True)
class LayerParity:
    """A file's rounded values, each computed from the measured model's own: how many were ``compared``, the largest root mean square
    difference of one of them in its steps, and its name; and the SQNR of the outputs, in dB, computed from the last of them."""

    compared: int
    rms_steps: float
    worst: str
    outputs_sqnr_db: float

    def entry(self) -> dict[str, Any]:
        """The report's ``layers_alone``."""
        return asdict(self)


@dataclass(frozen=True)
class Runner:
    """A loaded file. ``hold`` brings a batch into the runtime's own layout, before a clock starts, and ``call`` computes raw outputs
    from it, of the structure that the task reads. ``label`` names the runtime with its version, ``kernel`` what it computes with, and
    ``note`` tells a person what is odd about the file.

    For outputs that are made step by step over a cache: ``step`` takes ids (1, T) and the cache so far to all logits (1, T, vocabulary)
    and the new cache, ``last`` the same to the last token's logits alone, and computes no others where it can.

    ``layers`` compares layer by layer what the outputs do not show; None where it cannot.
    """

    label: str
    hold: Callable[[Batch], Any]
    call: Callable[[Any], Any]
    kernel: str = ""
    note: str = ""
    step: Step | None = None
    last: Step | None = None
    layers: Callable[[], LayerParity | None] = lambda: None

    def run(self, batch: Batch) -> Any:
        """The raw outputs of ``batch``."""
        return self.call(self.hold(batch))


@dataclass(frozen=True)
class Logits:
    """Raw outputs of a runtime that gives logits alone, with the name that transformers has for them."""

    logits: Tensor


def decoder_runner(label: str, kernel: str, step: Step, last: Step, note: str = "") -> Runner:
    """The ``Runner`` of a decoder that is a step over a cache."""

    def call(ids: Tensor) -> Logits:
        return Logits(step(ids, None)[0].float())

    return Runner(label, lambda batch: batch.kwargs["input_ids"].cpu(), call, kernel, note, step, last)


def program_runner(
    context: ExportContext, label: str, hold: Callable[[tuple[Tensor, ...]], Any], call: Callable[[Any], Sequence[Tensor]], kernel: str
) -> Runner:
    """The ``Runner`` of a program. ``hold`` brings its inputs in order into the runtime's layout, ``call`` gives its results in order;
    the runner takes batches and gives what the model returns."""
    model = context.model
    return Runner(label, lambda batch: hold(model.inputs_of(batch)), lambda held: model.rebuilt(call(held)), kernel)


def of_one_item(context: ExportContext) -> str:
    """What is to be said of results that have another number of dimensions for one item, as ``squeeze()`` without a dimension gives:
    a file has one rank. Empty where there are none."""
    model = context.model
    one, two = (model.values(*context.items(0, count)) for count in (1, 2))
    for name in model.program.results:
        alone, shape = tuple(one[name].shape), tuple(two[name].shape)
        if len(alone) != len(shape):
            return f"for one item the model returns {alone} and this file {(1, *shape[1:])}: squeeze() drops the batch there"
    return ""
