"""Layers that are slower on integers than in fp32 here, and what the proposal does about them. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.events.speed import is_slower
from engine.kernels.stopwatch import Race
from engine.recipe.spec import LayerSpec

if TYPE_CHECKING:
    from engine.kernels.timing import Timing

Specs = Mapping[str, LayerSpec]
Racing = Callable[[Specs, Specs, int], Race | None]


@dataclass(frozen=True)
class Pace:
    """One layer's speed alone, for one image and, where that is slower on integers, for a batch. With ``stored`` the proposal
    keeps its weights as integers and computes it in fp32; ``decision`` says why it does, or does not. Not ``steady`` is what was timed
    while the machine had other work: no speed is claimed of it."""

    single: Timing | None = None
    batched: Timing | None = None
    stored: bool = False
    decision: str = ""
    steady: bool = True

    @property
    def int8_ms(self) -> float | None:
        return self.single.int8_ms if self.single else None

    @property
    def fp32_ms(self) -> float | None:
        return self.single.fp32_ms if self.single else None

    @property
    def slower(self) -> bool:
        return self.single is not None and self.single.slower

    @property
    def fact(self) -> str:
        """A sentence for a layer that is slower; empty for others."""
        return (
            f"slower alone here: {_pair(self.single.int8_ms, self.single.fp32_ms)}" if self.single and self.slower and self.steady else ""
        )

    @property
    def why(self) -> str:
        return "; ".join(filter(None, (self.fact, self.decision)))


UNTIMED = Pace()


@dataclass(frozen=True)
class Paces:
    """Those of all layers that were timed, by module path. ``decided`` is False where the machine was too busy to decide by."""

    layers: Mapping[str, Pace]
    decided: bool = True

    @property
    def stored(self) -> tuple[str, ...]:
        return tuple(path for path, pace in self.layers.items() if pace.stored)


@dataclass(frozen=True)
class Trial:
    """Milliseconds of the steps around some layers with them on integers and in fp32, for one image and for a batch."""

    single: Race
    batched: Race

    @property
    def gains(self) -> bool:
        """Whether fp32 takes less for one image and no more for a batch, beyond what measurements differ by."""
        return is_slower(*self.single) and not is_slower(self.batched[1], self.batched[0])


def is_open(pace: Pace) -> bool:
    """Whether fp32 might be the better choice: slower on integers for one image, and no faster for a batch."""
    return pace.slower and (pace.batched is None or pace.batched.int8_ms >= pace.batched.fp32_ms)


def decide(
    paces: Mapping[str, Pace], specs: Specs, groups: Sequence[tuple[str, ...]], race: Racing, batch: int,
    given: Collection[str] | None = None,
) -> Iterator[tuple[str, Pace]]:  # fmt: skip
    """What the proposal does about each slower layer, by path, as it is found.

    ``specs`` are those of a plan that has these layers on integers, ``groups`` those of them that follow one another
    and are open. A group is tried whole, then its layers one by one. ``given`` is a decision that was made before: the
    layers in fp32; the trials then only say what it means here. Raises Cancelled.
    """
    for path, pace in paces.items():
        in_fp32 = given is not None and path in given
        if pace.slower and not is_open(pace):
            yield path, _settled(pace, in_fp32)
        elif in_fp32 and not pace.slower:
            yield path, replace(pace, stored=True, decision="the recipe has it computed in fp32, on stored weights")
    for group in groups:
        whole = _trial(specs, group, race, batch)
        if _accepted(whole, group, given) or len(group) == 1:
            for path in group:
                yield path, _judged(paces[path], whole, _accepted(whole, group, given), given)
            continue
        for path in group:
            alone = _trial(specs, (path,), race, batch)
            yield path, _judged(paces[path], alone, _accepted(alone, (path,), given), given)


def undecided(pace: Pace) -> Pace:
    """A slower layer on a machine whose figures are not to be decided by."""
    decision = "seems slower alone, but the machine is busy with other work, so it stays on integers untried" if pace.slower else ""
    return replace(pace, decision=decision, steady=False)


def stored(spec: LayerSpec) -> LayerSpec:
    """The same weights, with activations in fp32."""
    return replace(spec, activations=None)


def _trial(specs: Specs, paths: Sequence[str], race: Racing, batch: int) -> Trial | None:
    after = {path: stored(spec) if path in paths else spec for path, spec in specs.items()}
    single = race(specs, after, 1)
    batched = race(specs, after, batch) if single else None
    return Trial(single, batched) if single and batched else None


def _accepted(trial: Trial | None, paths: Collection[str], given: Collection[str] | None) -> bool:
    if given is not None:
        return set(paths) <= set(given)
    return trial is not None and trial.gains


def _settled(pace: Pace, in_fp32: bool) -> Pace:
    assert pace.batched is not None
    fact = f"for {pace.batched.batch} images it is not ({_pair(pace.batched.int8_ms, pace.batched.fp32_ms)})"
    if in_fp32:
        return replace(pace, stored=True, decision=f"{fact}, yet the recipe has it computed in fp32, on stored weights")
    return replace(pace, decision=f"{fact}, so it stays on integers")


def _judged(pace: Pace, trial: Trial | None, accepted: bool, given: Collection[str] | None) -> Pace:
    if trial is None:
        told = "the steps around it could not be timed"
    else:
        told = f"with the steps around it {_pair(*trial.single)}"
        if trial.gains is not is_slower(*trial.single):
            told += f", for a batch {_pair(*trial.batched)}"
    asked = "the recipe has it" if given is not None else "so it is" if accepted else "so it"
    if accepted:
        return replace(pace, stored=True, decision=f"{told}, {asked} computed in fp32, on stored weights")
    return replace(pace, decision=f"{told}, {asked} {'stay' if given is not None else 'stays'} on integers")


def _pair(integers: float, floats: float) -> str:
    return f"{integers:.3f} ms on integers, {floats:.3f} ms in fp32"
