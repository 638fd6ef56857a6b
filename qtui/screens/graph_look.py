"""The graph as its screen needs it: what becomes of each pair, and who reads whom. Pure values and functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from engine.events.event import NodeRow, PairRow, Pairs
from engine.recipe.decisions import Answer, Fold
from qtui.state import State

Fate = Literal["fold", "later", "refused", "folded"]
Phase = Literal["open", "working", "closed"]

GLYPHS: Mapping[Fate, str] = {"fold": "◆", "later": "◇", "refused": "✗", "folded": "●"}
WORDS: Mapping[Fate, str] = {"fold": "folds", "later": "later", "refused": "refused", "folded": "folded"}
ROLES: Mapping[Fate, str] = {"fold": "change", "later": "", "refused": "harm", "folded": "good"}
MODULE = "module"
"""The opcode of a row that is a module of a language model."""
LANES = 3
"""Brackets that run side by side at most; further pairs have their glyph alone."""

# A name in the text of arguments; one before "=" is a parameter's name.
_NAME = re.compile(r"(?<![\w.'\"])[A-Za-z_]\w*(?![\w.]*\s*=)")


@dataclass(frozen=True)
class Look:
    """``left`` are the normalizations (module paths) that are left for the conversion. ``phase`` is whether folding is
    still to be decided, goes on, or is behind."""

    traced: tuple[NodeRow, ...] = ()
    fused: tuple[NodeRow, ...] = ()
    pairs: Pairs | None = None
    left: frozenset[str] = frozenset()
    phase: Phase = "open"
    warnings: tuple[str, ...] = ()
    asked_later: tuple[str, ...] = ()

    @classmethod
    def of(cls, state: State, left: frozenset[str] = frozenset()) -> Look:
        run = state.run
        later = tuple(run.recipe.get("fold_later") or ())
        return cls(run.traced, run.fused, run.pairs, left, _phase(state), run.warnings, later)

    @property
    def folded(self) -> bool:
        """Whether there is a folded graph, and its change is measured as far as it will be."""
        return bool(self.fused) and (self.phase == "closed" or (self.pairs is not None and self.pairs.change is not None))

    @property
    def modular(self) -> bool:
        """Whether the rows are the modules of a language model and not the nodes of a graph."""
        return bool(self.traced) and self.traced[0].opcode == MODULE

    @cached_property
    def exported(self) -> bool:
        """Whether the rows are what torch.export sees: operations on tensors alone, none of them timed."""
        return bool(self.traced) and self.pairs is None and not any(n.opcode in ("call_module", MODULE) for n in self.traced)

    @property
    def rows(self) -> tuple[PairRow, ...]:
        return self.pairs.pairs if self.pairs else ()

    def fate(self, pair: PairRow) -> Fate:
        if pair.reason is not None:
            return "refused"
        if pair.max_abs_delta is not None:
            return "folded"
        return "later" if pair.bn in self.left or self.phase == "closed" else "fold"

    def with_fate(self, *fates: Fate) -> tuple[PairRow, ...]:
        return tuple(pair for pair in self.rows if self.fate(pair) in fates)

    @cached_property
    def foldable(self) -> tuple[str, ...]:
        return tuple(pair.bn for pair in self.rows if pair.reason is None)

    @cached_property
    def _pair_of(self) -> Mapping[str, PairRow]:
        found: dict[str, PairRow] = {}
        for pair in self.rows:
            found.setdefault(pair.conv_node, pair)
            found.setdefault(pair.bn_node, pair)
        return found

    def pair(self, node: str) -> PairRow | None:
        """The pair that a node is part of; the first where a convolution is read by several normalizations."""
        return self._pair_of.get(node)

    @cached_property
    def _nodes(self) -> Mapping[str, NodeRow]:
        return {node.name: node for node in self.traced}

    @cached_property
    def _after(self) -> Mapping[str, NodeRow]:
        return {node.name: node for node in self.fused}

    def node(self, name: str) -> NodeRow | None:
        return self._nodes.get(name) or self._after.get(name)

    def after(self, name: str) -> NodeRow | None:
        """The node in the folded graph."""
        return self._after.get(name)

    @cached_property
    def _readers(self) -> Mapping[str, tuple[str, ...]]:
        return _readers(self.traced)

    @cached_property
    def _readers_after(self) -> Mapping[str, tuple[str, ...]]:
        return _readers(self.fused)

    def readers(self, name: str, before: bool = True) -> tuple[str, ...]:
        """The nodes that take this one's output, in the graph as traced or as folded."""
        return (self._readers if before else self._readers_after).get(name, ())

    def inputs(self, node: NodeRow) -> tuple[str, ...]:
        return reads(node, self._nodes)

    @cached_property
    def params(self) -> int:
        return sum(node.params for node in self.traced)

    def warning(self, node: NodeRow) -> str | None:
        """What was warned about the module of this node."""
        return next((text for text in self.warnings if node.opcode == "call_module" and text.startswith(f"{node.target} (")), None)

    def answer(self) -> Answer:
        """The choice as the engine takes it: yes, no, or the pairs that are folded now."""
        chosen = tuple(bn for bn in self.foldable if bn not in self.left)
        if self.foldable and not chosen:
            return False
        # A plain yes is the recipe's own choice, which may leave some for later.
        return True if len(chosen) == len(self.foldable) and not self.asked_later else Fold(chosen)


def _phase(state: State) -> Phase:
    if state.asking == "optimize":
        return "open"
    status = state.run.status("graph")
    if state.job is not None and status == "running":
        return "working" if state.run.pairs else "open"
    return "open" if state.run.pairs is None else "closed"


def reads(node: NodeRow, known: Mapping[str, object]) -> tuple[str, ...]:
    """The nodes whose output this one takes, once each, in order."""
    if node.opcode in ("placeholder", "get_attr"):
        return ()
    found = _NAME.findall(f"{node.args}, {node.kwargs}")
    return tuple(dict.fromkeys(name for name in found if name in known and name != node.name))


def _readers(nodes: Sequence[NodeRow]) -> Mapping[str, tuple[str, ...]]:
    known = {node.name: node for node in nodes}
    found: dict[str, list[str]] = {}
    for node in nodes:
        for name in reads(node, known):
            found.setdefault(name, []).append(node.name)
    return {name: tuple(readers) for name, readers in found.items()}


def brackets(nodes: Sequence[NodeRow], pairs: Sequence[PairRow]) -> Mapping[str, str]:
    """What stands before each node: ``┌`` and ``└`` at the nodes of a pair, ``│`` between, one lane for each pair that is open
    at the same time. All texts have one width, 0 where no pair is in the graph."""
    places = {node.name: index for index, node in enumerate(nodes)}
    spans = sorted((places[p.conv_node], places[p.bn_node]) for p in pairs if p.conv_node in places and p.bn_node in places)
    ends: list[int] = []
    drawn: list[dict[int, str]] = []
    for first, last in spans:
        lane = next((i for i, end in enumerate(ends) if end < first), len(ends))
        if lane == LANES:
            continue
        if lane == len(ends):
            ends.append(last)
            drawn.append({})
        ends[lane] = last
        drawn[lane] |= {first: "┌", last: "└", **dict.fromkeys(range(first + 1, last), "│")}
    return {node.name: "".join(lane.get(index, " ") for lane in drawn) for index, node in enumerate(nodes)}
