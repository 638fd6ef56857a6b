"""What the layers of a decoder read: ranges, and the channels that stand out."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.algorithms.gram import counted
from engine.data.text.batching import filled
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Bins, Event, RangeRow, Ranges
from engine.events.progress import Every, Ticker
from engine.lowering.graph.ranges import BINS, ends
from engine.machine import ranks
from engine.models.experts import is_expert
from engine.numerics.float_activations import static_step
from engine.numerics.histogram import Histogram
from engine.numerics.observers import RangeObserver, merged, observer, settled
from engine.numerics.qparams import QParams, affine
from engine.recipe.spec import ActivationSpec

# A channel stands out whose largest value is that many times the median channel's. Dettmers et al. 2022 (arXiv:2208.07339,
# section 4) call values of 6 and more outliers, in models whose values are of the order of one.
STANDS_OUT = 6.0


class Inputs:
    """The input of one layer. ``largest`` (in,) holds the largest magnitude of each channel."""

    def __init__(self, spec: ActivationSpec, counting: bool, part: bool = False) -> None:
        self.spec = spec
        self.observer: RangeObserver = observer(spec, part)
        self.histogram = Histogram(part) if counting else None
        self.largest: Tensor | None = None
        self.low, self.high = math.inf, -math.inf
        self.windows = 0
        # The range that is held against later ones, and the windows that were seen when it came.
        self._held: tuple[float, float, int] | None = None
        # Of one that sees some of the batches: the range after each turn, and its windows.
        self._turns: list[tuple[int, float, float, int]] | None = [] if part else None

    def at(self, turn: int) -> None:
        """What comes next belongs to batch ``turn`` of all."""
        self.observer.at(turn)
        if self.histogram is not None:
            self.histogram.turn = turn

    @staticmethod
    def merged(parts: Sequence[Inputs]) -> Inputs:
        """What one would be that saw the batches of all ``parts``."""
        first = parts[0]
        whole = Inputs(first.spec, first.histogram is not None)
        whole.observer = merged(first.spec, [part.observer for part in parts])
        if first.histogram is not None:
            whole.histogram = Histogram.merged([part.histogram for part in parts if part.histogram is not None])
        largest = [part.largest for part in parts if part.largest is not None]
        whole.largest = torch.stack(largest).amax(0) if largest else None
        for _, low, high, windows in sorted(turn for part in parts for turn in part._turns or ()):
            whole.low, whole.high = min(whole.low, low), max(whole.high, high)
            whole.saw(windows)
        return whole

    def update(self, x: Tensor) -> None:
        """``x`` (..., in), of tokens that count."""
        rows = x.reshape(-1, x.shape[-1]).float()
        largest = rows.abs().amax(0)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        low, high = float(rows.min()), float(rows.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.observer.update(rows)
        if self.histogram is not None:
            self.histogram.update(rows)

    def saw(self, windows: int) -> None:
        """Note whether the last ``windows`` have moved the range, by more than a hundredth of its width."""
        self.windows += windows
        if self._turns is not None:
            self._turns.append((self.observer.turn, self.low, self.high, windows))
        held = self._held
        if held is None or max(held[0] - self.low, self.high - held[1]) > 0.01 * (self.high - self.low):
            self._held = (self.low, self.high, self.windows)

    @property
    def settled(self) -> int | None:
        """The windows after which the range held still; None while it moves."""
        return self._held[2] if self._held and 3 * self._held[2] <= 2 * self.windows else None

    @property
    def outliers(self) -> int:
        assert self.largest is not None
        return int((self.largest > STANDS_OUT * self.largest.median().clamp_min(1e-30)).sum())

    def grid(self, path: str) -> QParams:
        """Of floats of few bits the step alone counts. Raises EngineError where the values are not finite."""
        low, high = settled(self.observer, self.spec.bits, path)
        if self.spec.format:
            return QParams(static_step(low, high, self.spec.format), 0)
        return affine(low, high, self.spec.bits, self.spec.symmetric)


def observe(
    model: Any, layers: Mapping[str, ActivationSpec], windows: Sequence[Tensor], batch: int, stop: StopToken, counting: bool,
) -> Generator[Event, None, dict[str, Inputs]]:  # fmt: skip
    """Run ``windows`` of token ids, 1-D each, through ``model`` and look at what enters ``layers`` (module paths); with ``counting``
    also ``Ranges`` on the way, in windows. Experts that no token reached are left out. Raises EngineError for another layer that
    nothing reached and for inputs that are not finite, Cancelled on stop."""
    part = ranks.several()
    seen = {path: Inputs(spec, counting, part) for path, spec in layers.items()}
    current: dict[str, Tensor | None] = {"keep": None}
    hooks = [model.get_submodule(path).register_forward_pre_hook(_look(seen[path], current)) for path in layers]
    ticker = Ticker("calibrate", len(windows), "windows", clock=stop.clock)
    due = Every(0.5, stop.clock)
    done = 0
    try:
        with torch.inference_mode():
            for turn, (ids, keep) in enumerate(batches(windows, batch)):
                stop.check()
                done += len(ids)
                if not ranks.mine(turn):
                    yield from ticker.advance(len(ids))
                    continue
                current["keep"] = keep
                for it in seen.values():
                    it.at(turn)
                model(input_ids=ids, use_cache=False)
                for it in seen.values():
                    it.saw(len(ids))
                if counting and due():
                    yield Ranges(done, len(windows), rows(seen))
                yield from ticker.advance(len(ids))
    finally:
        for hook in hooks:
            hook.remove()
    if part:
        seen = _together(seen)
    seen = {path: found for path, found in seen.items() if found.largest is not None or not is_expert(path)}
    for path, found in seen.items():
        if found.largest is None:
            raise EngineError(f"no calibration text reached {path}: keep it in fp32, or calibrate on more text")
        if not torch.isfinite(found.largest).all():
            raise EngineError(f"what enters {path} is NaN or infinite on the calibration text: check the weights")
    if counting:
        yield Ranges(done, len(windows), rows(seen), final=True)
    return seen


def _together(seen: Mapping[str, Inputs]) -> dict[str, Inputs]:
    """What all ranks have seen."""
    for found in seen.values():
        found.largest = None if found.largest is None else found.largest.cpu()
    several = ranks.gathered(dict(seen))
    return {path: Inputs.merged([one[path] for one in several]) for path in seen}


def reached(seen: Mapping[str, Inputs], path: str) -> Inputs:
    """What enters ``path``; of an expert that no token reached, what enters that of its block with the widest range. Raises
    EngineError where none was reached."""
    if path in seen:
        return seen[path]
    before, _, after = path.partition(".experts.")
    name = after.partition(".")[2]
    others = [found for other, found in seen.items() if other.startswith(f"{before}.experts.") and other.endswith(f".{name}")]
    if not others:
        raise EngineError(f"no calibration text reached {path} or another expert beside it: calibrate on more text")
    return max(others, key=lambda found: found.high - found.low)


def batches(windows: Sequence[Tensor], batch: int) -> Generator[tuple[Tensor, Tensor | None], None, None]:
    """Ids (N, T), and what of them counts, None for all: shorter ones are filled up on the right."""
    for start in range(0, len(windows), batch):
        ids, keep = filled(windows[start : start + batch])
        yield ids, None if keep.all() else keep


def rows(seen: Mapping[str, Inputs]) -> tuple[RangeRow, ...]:
    found = []
    for path, it in seen.items():
        if it.largest is None or it.histogram is None or not (math.isfinite(it.low) and math.isfinite(it.high)):
            continue
        clip = ends(affine(it.low, it.high, it.spec.bits, it.spec.symmetric)) if it.observer.quick else (it.low, it.high)
        counts = it.histogram.over(it.low, it.high, BINS)
        bins = Bins(it.low, (it.high - it.low) / BINS or 1.0, counts)
        found.append(RangeRow(path, (path,), it.low, it.high, *clip, bins, it.settled, it.outliers, len(it.largest)))
    return tuple(found)


def _look(seen: Inputs, current: Mapping[str, Tensor | None]) -> Any:
    def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        rows = counted(given[0].reshape(-1, given[0].shape[-1]), current["keep"])
        if len(rows):
            seen.update(rows)

    return look
