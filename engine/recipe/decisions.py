"""Answers to a run's questions that say more than yes or no. Each of them implies yes."""

from __future__ import annotations

from dataclasses import dataclass

from engine.recipe.spec import LayerSpec, Rule


@dataclass(frozen=True)
class Fold:
    """To ``optimize``: fold the pairs of these normalizations (module paths) now, the others at conversion."""

    bns: tuple[str, ...]


@dataclass(frozen=True)
class Strategy:
    """To ``quantize``: plan again with this preset and these rules, the first that matches a layer wins.

    With ``go`` the run goes on with that plan; without, it shows the plan and asks again.
    """

    preset: str
    rules: tuple[Rule, ...]
    go: bool = True


@dataclass(frozen=True)
class Sensitive:
    """To ``quantize``: estimate what each layer costs (the event ``Sensitivities``), and ask again.

    With ``measured`` the metric itself is then measured on validation with each of these candidates alone, as (path, candidate) such
    as ``("fc1", "w4")``; None is for all of them.
    """

    measured: tuple[tuple[str, str], ...] | None = ()


@dataclass(frozen=True)
class Inspect:
    """To ``quantize``: show one layer (by path) before and after it becomes ``spec`` (the event ``Inspected``), and ask again."""

    path: str
    spec: LayerSpec


@dataclass(frozen=True)
class Train:
    """To ``qat``: train for that many epochs."""

    epochs: int


Answer = bool | Fold | Strategy | Sensitive | Inspect | Train | None
