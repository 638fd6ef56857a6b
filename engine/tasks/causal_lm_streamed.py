"""A language model that is larger than memory as a task: when a run reads it block by block, and what it then does without."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from engine.errors import UsageError
from engine.events.cancellation import StopToken
from engine.events.event import Event
from engine.machine import ranks
from engine.machine.memory import available
from engine.models.shards import Shards, shards_of
from engine.models.transformers_folder import Folder
from engine.recipe.recipe import Recipe
from engine.tasks.causal_lm import CausalLM
from engine.tasks.timing import Timing

# Bytes for each parameter of what a run in memory holds at once: fp32, what the integers stand for, and the integers on kernels.
HELD = 9
# The part of the free memory that a run may take.
_PART = 0.8


class StreamedCausalLM(CausalLM):
    """The same task without what needs the whole model at once: times, and texts that are continued."""

    workloads = ()
    stepwise = False

    def time(self, models: Mapping[str, Any], stop: StopToken, device: str = "cpu") -> Generator[Event, None, dict[str, Timing]]:
        """No times: a form that has been walked is not run again."""
        yield from ()
        return {name: Timing({}) for name in models}

    def describe(self, models: Mapping[str, Any], stop: StopToken) -> Generator[Event, None, list[dict[str, Any]]]:
        yield from ()
        return []


def is_streamed(recipe: Recipe, found: Folder | None) -> tuple[Shards, str] | None:
    """The tensors of ``found`` and a sentence why the run reads them block by block; None where it does not. ``found`` is None for what is
    no folder of safetensors. Raises UsageError for a recipe that asks for it where it cannot be, or for what it cannot do."""
    if recipe.stream is False:
        return None
    files = found is not None and all(path.suffix == ".safetensors" for path in found.weights)
    if found is None or not files:
        if recipe.stream:
            raise UsageError(f"{recipe.model} is no folder of safetensors, which alone is read block by block: leave --stream out")
        return None
    shards = shards_of(found.weights)
    room = available()
    needed = HELD * shards.numbers
    size = f"{shards.numbers / 1e9:.2f} billion parameters"
    if recipe.stream:
        why = f"{recipe.model}: {size} are read block by block, as was asked"
    elif room is not None and needed > _PART * room:
        why = (
            f"{recipe.model}: {size} would need about {needed / 1e9:.0f} GB in memory, and {room / 1e9:.0f} GB are free: "
            "they are read block by block, with --no-stream they are not"
        )
    else:
        return None
    refuse(recipe)
    return shards, f"{why}; speed is not measured, and no text is continued"


def refuse(recipe: Recipe) -> None:
    """Raises UsageError for what a recipe asks that needs the whole model in memory."""
    asked = {
        "QAT": recipe.qat.mode == "always", "a search for targets": bool(recipe.targets), "graph: export": recipe.graph == "export",
        "device: cuda": recipe.device == "cuda", "cache": recipe.cache is not None, "rotation": recipe.rotation is not None,
    }  # fmt: skip
    for what, is_asked in asked.items():
        if is_asked:
            raise UsageError(f"{what} needs the whole model in memory, and {recipe.model} is read block by block: leave it out")
    if ranks.several():
        raise UsageError(f"{recipe.model} is read block by block, which one process does: start one rank, or give --no-stream")
