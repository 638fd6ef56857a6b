"""The harm of each layer: estimated from one backward pass over calibration items, or measured by the metric, layer by layer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.algorithms.channelwise import quantize_weight
from engine.algorithms.matrix import quantize_matrix
from engine.algorithms.registry import method
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.events.event import Event, LayerRow, Notice, Sensitivities
from engine.events.progress import Ticker
from engine.lowering.probing import Probe, Site, grouped
from engine.machine import ranks
from engine.models.anatomy import weight_of
from engine.numerics.scheme import scheme_of
from engine.numerics.sqnr import sqnr_db
from engine.paths import save
from engine.planning.sensitivity import Basis, Candidate, LayerSensitivity, Sensitivity, candidates, size_of
from engine.reading import MB, read_json
from engine.tasks.base import Batch, Forward, Task

STATE = "sensitivity.json"
# Items that an estimate reads: fewer of large inputs, by the multiply-adds of one item.
MOST, LEAST = 256, 16
_MULTIPLY_ADDS = 4e10
# Of those that tell the noise of each candidate at its layer's output.
_OF_NOISE = 4e9
# Of running the model with one change, where that is more than a small one: in nats, or as a part of the outputs' power.
_OF_REFINING, _SMALL, _FEW = 6e11, 2e-3, 3
# What a report's estimate reads less.
_QUICK = 4
# Items run together, and bytes of what candidates change that are held at a time.
_CHUNK = 8
_BUDGET = 2**30
_LARGEST_STATE = 16 * MB


@dataclass(frozen=True)
class Subject:
    """A model with its layers as an estimate takes them: ``forward`` runs a batch through ``model``, whose modules ``sites`` name.
    ``rows`` are the plan's."""

    model: nn.Module
    forward: Forward
    sites: tuple[Site, ...]
    rows: Mapping[str, LayerRow]
    device: str = "cpu"


ErrorOf = Callable[[LayerRow, nn.Module, Candidate], Tensor]


def sites_of(
    rows: Sequence[LayerRow], module_of: Callable[[str], nn.Module], error: ErrorOf, activation_bits: int = 8, shared: bool = False,
    only: Mapping[str, Sequence[Candidate]] | None = None,
) -> tuple[Site, ...]:  # fmt: skip
    """A site for each layer of a plan that can be quantized; ``only`` names other candidates by path, for the layers that it has."""
    found = []
    for row in rows:
        several = candidates(row, activation_bits) if only is None else tuple(only.get(row.path, ()))
        if not several:
            continue
        module = module_of(row.path)
        found.append(Site(
            row.path, module, tuple(c for c in several if c.weights), tuple(c for c in several if c.activations),
            partial(error, row, module), row.tied or row.path, type(module).__name__ == "Conv1D", shared,
        ))  # fmt: skip
    return tuple(found)


@torch.no_grad()
def rounding_error(row: LayerRow, module: nn.Module, candidate: Candidate) -> Tensor:
    """What rounding the weight of a convolution or linear layer of a folded graph adds to it, (out, inputs)."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    assert candidate.weights is not None
    held = weight.detach().float().cpu()
    return (quantize_weight(held, candidate.weights).dequantize() - held).flatten(1)


@torch.no_grad()
def matrix_error(row: LayerRow, module: nn.Module, candidate: Candidate) -> Tensor:
    """The same of a matrix of a language model, (out, in), or of an embedding, (rows, width)."""
    assert candidate.weights is not None
    spec, held = candidate.weights, weight_of(module).float().contiguous()
    return quantize_matrix(held, scheme_of(spec), method(spec.method), None, False).weight.dequantize().to(held.device) - held


@torch.no_grad()
def unfolded_error(folded: nn.Module, row: LayerRow, module: nn.Module, candidate: Candidate) -> Tensor:
    """What rounding the weight of ``folded``, which holds that of ``module`` with the normalization behind it, means for the weight
    before that."""
    weights: tuple[Tensor, Tensor] = tuple(m.weight.detach().float().cpu().flatten(1) for m in (module, folded))  # type: ignore
    own, held = weights
    power = own.square().sum(1)
    factor = torch.where(power > 0, (own * held).sum(1) / power.clamp_min(1e-30), torch.ones_like(power))
    safe = torch.where(factor == 0, torch.ones_like(factor), factor)
    return rounding_error(row, folded, candidate) / safe[:, None]


def estimate(
    subject: Subject, task: Task, items: int, stop: StopToken, seed: int = 0, quick: bool = False
) -> Generator[Event, None, Sensitivity]:
    """The harm of every candidate of ``subject`` on the first ``items`` calibration items or fewer; says what it will cost before it
    begins. A ``quick`` one reads fewer and looks at no more than the second order. Yields Notice, Progress and at the end
    ``Sensitivities``. Raises EngineError where outputs are not finite, Cancelled on stop."""
    begun = stop.clock()
    chunks = _chunks(task, items, subject.device)
    first = next(chunks, None)
    if first is None or not subject.sites:
        return Sensitivity((), "noise", 0)
    with _frozen(subject.model):
        for site in subject.sites:
            site.low, site.high = math.inf, -math.inf
        work, seconds = _work(subject, first, stop)
        part = _QUICK if quick else 1
        most = int(min(max(_MULTIPLY_ADDS / max(work, 1.0), LEAST) / part, MOST / part, items)) or 1
        count = -(-most // _rows(first))
        groups = grouped(subject.sites, _BUDGET)
        noisy = int(min(max(_OF_NOISE / max(work, 1.0), 1), _rows(first)))
        several = max(len(s.weights) + len(s.activations) for s in subject.sites)
        cost = seconds * (count * (1 + 5 * len(groups)) + several * noisy / _rows(first))
        cost += seconds * min(_OF_REFINING / max(work * _rows(first), 1.0), count * sum(_coarse(site) for site in subject.sites))
        yield Notice(
            f"estimating {sum(len(s.weights) + len(s.activations) for s in subject.sites)} candidates of {len(subject.sites)} layers on "
            f"{most} calibration items: about {_duration(cost)}"
        )
        ticker = Ticker("sensitivity", count * (1 + len(groups)), "batches", clock=stop.clock)
        used: list[Batch] = []
        with _probed(subject, subject.sites, only_ranges=True) as ranges:
            for batch in _prefix(first, chunks, count):
                stop.check()
                used.append(batch)
                with torch.inference_mode(), ranges.looking("ranges", _rows(batch)):
                    subject.forward(batch)
                yield from ticker.advance()
        rows: dict[str, list[LayerSensitivity]] = {}
        basis: Basis = "noise"
        for group in groups:
            basis, found = yield from _group(subject, group, task, used, noisy, stop, ticker, seed)
            rows |= found
        layers = [one for site in subject.sites for one in rows[site.path]]
        if not quick:
            layers = yield from _refined(subject, task, layers, used, basis, work, stop)
    result = Sensitivity(tuple(layers), basis, sum(map(_rows, used)), round(stop.clock() - begun, 3))
    yield event_of(result)
    return result


def event_of(found: Sensitivity) -> Sensitivities:
    """The event that tells a sensitivity."""
    return Sensitivities(found.layers, found.basis, found.items, found.seconds, sum(one.drop is not None for one in found.layers))


def _group(
    subject: Subject, group: Sequence[Site], task: Task, batches: Sequence[Batch], noisy: int, stop: StopToken, ticker: Ticker, seed: int
) -> Generator[Event, None, tuple[Basis, dict[str, list[LayerSensitivity]]]]:
    generator = torch.Generator(subject.device).manual_seed(seed)
    basis: Basis = "noise"
    power = 0.0
    with _probed(subject, group) as probe:
        for number, batch in enumerate(batches):
            stop.check()
            if number == 0:
                with torch.no_grad(), probe.looking("noise", noisy):
                    subject.forward(_first(batch, noisy))
            if number == 0 or basis != "noise":
                basis, add = _pass(subject, probe, task, batch, generator)
                power += add
            yield from ticker.advance()
        factor = 1.0 if basis == "mse" else 0.5
        return basis, {site.path: _rows_of(site, subject.rows[site.path], probe, basis, factor / max(power, 1e-300)) for site in group}


def _pass(subject: Subject, probe: Probe, task: Task, batch: Batch, generator: torch.Generator) -> tuple[Basis, float]:
    """One forward and backward of ``batch``; what was differentiated, and the number or power that its squares are a part of."""
    try:
        with torch.enable_grad(), probe.looking("gradients", _rows(batch)):
            raw = subject.forward(batch)
            basis, scalar, power = probed_loss(task, raw, batch, _rows(batch), generator)
            if not scalar.requires_grad:
                return "noise", 0.0
            if not math.isfinite(float(scalar.detach())):
                raise EngineError(f"the fp32 model gives NaN or infinity on the calibration items: {task.not_finite}")
            scalar.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return "noise", 0.0
    probe.settle()
    return basis, power


def probed_loss(task: Task, raw: Any, batch: Batch, rows: int, generator: torch.Generator) -> tuple[Basis, Tensor, float]:
    """A number whose gradient g has E[g gᵀ] = the Hessian of the loss in what g is of, over random signs; what the loss is; and what
    the sum over items is divided by.

    Of logits the loss is the divergence KL(fp32 ‖ quantized) of a distribution, whose Hessian is diag(p) - p pᵀ. Of a task's own loss
    it is the empirical Fisher information: the gradient of each item's loss. Of other outputs it is their squared error.
    """
    outputs = task.outputs(raw)
    if task.distribution:
        logits = outputs[0].float()
        with torch.no_grad():
            p = logits.softmax(-1)
            root = p.sqrt() * _signs(p, generator)
            v = root - p * root.sum(-1, keepdim=True)
        return "kl", (v * logits).sum(), logits.numel() / logits.shape[-1]
    loss = None if batch.targets is None else task.loss(raw, batch.targets)
    if loss is not None and loss.requires_grad:
        return "loss", loss * rows, float(rows)
    several = [output for output in outputs if output.requires_grad]
    parts = [(output.float() * _signs(output, generator)).sum() for output in several]
    power = sum(float(output.detach().double().square().sum()) for output in several)
    return "mse", torch.stack(parts).sum() if parts else torch.zeros(()), power


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, like.shape, generator=generator, device=like.device).mul_(2).sub_(1).to(torch.float32)


def _rows_of(site: Site, row: LayerRow, probe: Probe, basis: Basis, factor: float) -> list[LayerSensitivity]:
    sums = probe.squares[site.path]
    found = []
    for several, squares in ((site.weights, sums.weights), (site.activations, sums.activations)):
        for candidate, square in zip(several, squares.tolist(), strict=True):
            noise = sums.noise.get(candidate.name, 0.0)
            harm = noise / max(sums.signal, 1e-300) if basis == "noise" else factor * square
            found.append(LayerSensitivity(site.path, candidate.name, sqnr_db(sums.signal, noise), harm, size_of(row, candidate)))
    return found


def _coarse(site: Site) -> int:
    """How many candidates of a layer are of so few bits that their error is no small change."""
    return sum(candidate.bits <= _FEW for candidate in (*site.weights, *site.activations))


def _refined(
    subject: Subject, task: Task, rows: list[LayerSensitivity], batches: Sequence[Batch], basis: Basis, work: float, stop: StopToken
) -> Generator[Event, None, list[LayerSensitivity]]:
    """``rows`` with what the loss really rises by on the same items, where the estimate is too large for a second order to hold: the
    worst first, as far as the multiply-adds reach. The model is run with that one change."""
    if basis not in ("kl", "mse"):
        return rows
    items, held = sum(map(_rows, batches)), list(batches)
    most = int(_OF_REFINING / max(work * items, 1.0))
    order = sorted(range(len(rows)), key=lambda place: -rows[place].loss_increase)
    chosen = [place for place in order if rows[place].loss_increase > _SMALL][:most]
    if not chosen:
        return rows
    known = {(site.path, c.name): (site, c) for site in subject.sites for c in (*site.weights, *site.activations)}
    found = list(rows)
    ticker = Ticker("sensitivity", len(chosen), "candidates", clock=stop.clock)
    with torch.inference_mode():
        wanted = [tuple(x.float() for x in task.outputs(subject.forward(batch))) for batch in _fitting(task, subject, held)]
        for place in chosen:
            site, candidate = known[rows[place].path, rows[place].candidate]
            with _rounded(site, candidate):
                sums = [0.0, 0.0]
                for batch, before in zip(held, wanted, strict=False):
                    stop.check()
                    after = task.outputs(subject.forward(batch))
                    for i, part in enumerate(_moved(task, before, after)):
                        sums[i] += part
            value = sums[0] / max(sums[1], 1e-300)
            found[place] = replace(rows[place], loss_increase=max(value, 0.0) if math.isfinite(value) else rows[place].loss_increase)
            yield from ticker.advance()
    return found


def _fitting(task: Task, subject: Subject, batches: Sequence[Batch]) -> Iterator[Batch]:
    """The first of ``batches``, as many as leave outputs that fit in memory."""
    size = 0
    for batch in batches:
        yield batch
        size += sum(4 * x.numel() for x in task.outputs(subject.forward(_first(batch, 1)))) * _rows(batch)
        if size > _BUDGET // 2:
            return


def _moved(task: Task, before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[float, float]:
    """What the outputs of a batch have moved by, and what that is divided by: as ``probed_loss`` estimates it."""
    if task.distribution:
        p, q = before[0].log_softmax(-1), after[0].float().log_softmax(-1)
        return float((p.exp() * (p - q)).double().sum()), p.numel() / p.shape[-1]
    pairs = list(zip(before, after, strict=True))
    noise = sum(float((b.float() - a).double().square().sum()) for a, b in pairs)
    return noise, sum(float(a.double().square().sum()) for a, _ in pairs)


# The real metric, one candidate at a time.


def measure(
    subject: Subject, task: Task, found: Sensitivity, directory: Path, stop: StopToken, batch: int, identity: str = "",
    wanted: Sequence[tuple[str, str]] | None = None, split: Any = "validation",
) -> Generator[Event, None, Sensitivity]:  # fmt: skip
    """``found`` with what the metric loses on validation where each candidate alone is rounded, simulated in floats; ``wanted`` names
    some of them as (path, candidate). Says what it will cost before it begins, and keeps each figure in ``directory``: a run that is
    stopped or killed goes on with the next candidate. ``identity`` tells what the figures are of. Raises Cancelled within a batch.
    """
    asked = [(s, c) for s in subject.sites for c in (*s.weights, *s.activations) if wanted is None or (s.path, c.name) in wanted]
    state: _State = ranks.called_by_first(lambda: _State(directory / STATE, identity))
    left = [(s, c) for s, c in asked if f"{s.path} {c.name}" not in state.drops]
    begun = stop.clock()
    with _frozen(subject.model):
        if any(not math.isfinite(s.low) for s in subject.sites if s.activations):
            with _probed(subject, subject.sites, only_ranges=True) as ranges:
                for part in _chunks(task, MOST, subject.device):
                    stop.check()
                    with torch.inference_mode(), ranges.looking("ranges", _rows(part)):
                        subject.forward(part)
        if state.baseline is None:
            state.baseline, state.seconds = ranks.called_by_first(
                lambda: (_metric(subject, task, split, batch, stop), stop.clock() - begun)
            )
            state.write()
        kept = f", {len(asked) - len(left)} are known already" if len(left) < len(asked) else ""
        cost = _duration(state.seconds * math.ceil(len(left) / ranks.count()))
        yield Notice(f"measuring {len(left)} candidates on {task.count(split):,} {split} {task.plural}: about {cost}{kept}")
        ticker = Ticker("sensitivity", len(asked), "candidates", clock=stop.clock)
        ticker.skip(len(asked) - len(left))
        # Each rank measures one of as many as there are ranks; what all have come to is kept before they go on.
        for start in range(0, len(left), ranks.count()):
            several = left[start : start + ranks.count()]
            own: dict[str, float] = {}
            for place, (site, candidate) in enumerate(several):
                if ranks.mine(place):
                    with _rounded(site, candidate):
                        value = _metric(subject, task, split, batch, stop)
                    own[f"{site.path} {candidate.name}"] = task.metric.drop(state.baseline, value)
            for found_there in ranks.gathered(own):
                state.drops |= found_there
            state.write()
            yield from ticker.advance(len(several))
    drops = {(s.path, c.name): state.drops[f"{s.path} {c.name}"] for s, c in asked}
    result = found.with_drops(drops)
    yield event_of(result)
    return result


class _State:
    """What was measured so far, in a file that is written whole. One of other figures, or none that can be read, counts as none."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity
        self.baseline: float | None = None
        self.seconds = 0.0
        self.drops: dict[str, float] = {}
        try:
            known = read_json(path, _LARGEST_STATE)
        except (OSError, ValueError):
            return
        if not isinstance(known, dict) or known.get("identity") != identity or not isinstance(known.get("drops"), dict):
            return
        numbers = [known.get("baseline"), known.get("seconds"), *known["drops"].values()]
        if all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in numbers):
            self.baseline, self.seconds = float(known["baseline"]), float(known["seconds"])
            self.drops = {str(key): float(value) for key, value in known["drops"].items()}

    def write(self) -> None:
        content = {"identity": self.identity, "baseline": self.baseline, "seconds": self.seconds, "drops": self.drops}
        if ranks.is_first():
            save(self.path, (json.dumps(content) + "\n").encode())


def _metric(subject: Subject, task: Task, split: Any, batch: int, stop: StopToken) -> float:
    evaluator = task.evaluator()
    with torch.inference_mode():
        for part in task.batches(split, batch=batch, device=subject.device):
            stop.check()
            part = part.laid_out()
            raw = subject.forward(part)
            evaluator.update(raw, task.held_against(raw, part.targets))
    return evaluator.compute()[task.metric.name].value


@contextmanager
def _rounded(site: Site, candidate: Candidate) -> Iterator[None]:
    """The layer with its weights, or what it reads, on the candidate's grid; as it was afterwards."""
    if candidate.weights is None:
        assert candidate.activations is not None
        spec = candidate.activations
        handle = site.module.register_forward_pre_hook(lambda _, given: (site.rounded(given[0], spec), *given[1:]))
        try:
            yield
        finally:
            handle.remove()
        return
    weight: Tensor = site.module.weight  # type: ignore[assignment]
    before = weight.data
    try:
        weight.data = before + site.stored(site.error(candidate).to(before.device))
        yield
    finally:
        weight.data = before


# What both share.


@contextmanager
def _probed(subject: Subject, sites: Sequence[Site], only_ranges: bool = False) -> Iterator[Probe]:
    known = [Site(s.path, s.module, (), s.activations, s.error) for s in sites] if only_ranges else sites
    probe = Probe(known, subject.device)
    try:
        yield probe
    finally:
        probe.close()
        for site, other in zip(sites, known, strict=True):
            site.low, site.high = other.low, other.high


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradient is for parameters, and nothing is in training mode; as it was afterwards."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    training = [module for module in model.modules() if module.training]
    model.requires_grad_(False).eval()
    try:
        yield
    finally:
        for p, wanted in before:
            p.requires_grad_(wanted)
        for module in training:
            module.training = True


def _chunks(task: Task, items: int, device: str) -> Iterator[Batch]:
    return (part.laid_out() for part in task.calibration_batches(batch=_CHUNK, limit=items, device=device))


def _prefix(first: Batch, rest: Iterator[Batch], count: int) -> Iterator[Batch]:
    yield first
    for _, batch in zip(range(count - 1), rest, strict=False):
        yield batch


def _rows(batch: Batch) -> int:
    """The items of a batch as its tensors have them: of a text windows."""
    leaves = torch.utils._pytree.tree_leaves((batch.args, dict(batch.kwargs)))
    return next((len(x) for x in leaves if isinstance(x, Tensor) and x.dim()), batch.count)


def _first(batch: Batch, count: int) -> Batch:
    """The first ``count`` rows; what has another first size is the same for all."""
    rows = _rows(batch)

    def cut(value: Any) -> Any:
        return value[:count] if isinstance(value, Tensor) and value.dim() and len(value) == rows else value

    args, kwargs = (torch.utils._pytree.tree_map(cut, part) for part in (batch.args, dict(batch.kwargs)))
    return Batch(args, kwargs, None, min(count, rows))


def _work(subject: Subject, batch: Batch, stop: StopToken) -> tuple[float, float]:
    """Multiply-adds of one item in the layers that are looked at, and the seconds that ``batch`` takes."""
    done: list[float] = []

    def count(module: nn.Module, given: Any, result: Any) -> None:
        if isinstance(result, Tensor) and not isinstance(module, nn.Embedding):
            weight: Tensor = module.weight  # type: ignore[assignment]
            out = weight.shape[1] if type(module).__name__ == "Conv1D" else weight.shape[0]
            done.append(result.numel() * weight.numel() / out)

    handles = [site.module.register_forward_hook(count) for site in subject.sites]
    try:
        with torch.inference_mode():
            subject.forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    # The first time memory is fetched and kernels are chosen.
    begun = stop.clock()
    with torch.inference_mode():
        subject.forward(batch)
    return math.fsum(done) / _rows(batch), stop.clock() - begun


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
