"""What a linear layer's inputs look like, gathered batch by batch without keeping them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.errors import EngineError
from engine.machine import ranks

# Inputs a text gives for one independent one: neighbouring tokens are much alike. Chosen on the validation part of the
# calibration sequences of the bench's GPT-2 (4,400 tokens; 20 does as well and 1 to 4 worse); with 262,144 tokens and 768 inputs
# it draws by 3 %.
SHRINKAGE = 10
# Rows of a matrix (in, in) that are worked on at a time: what lies beside it stays small.
STRIP = 512


@dataclass
class HeldBack:
    """Inputs x (tokens, in) that the sums leave out, for judging what was made of them, and their original x0 where they drift."""

    inputs: Tensor
    originals: Tensor | None = None

    def to(self, device: torch.device | str) -> HeldBack:
        return HeldBack(self.inputs.to(device), None if self.originals is None else self.originals.to(device))

    def parts(self, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, HeldBack]]:
        """In parts of ``sizes``, (batch, inputs) each, with their batches."""
        counts = [count for _, count in sizes]
        inputs = torch.split(self.inputs, counts)
        originals = [None] * len(counts) if self.originals is None else torch.split(self.originals, counts)
        return [(turn, HeldBack(x, x0)) for (turn, _), x, x0 in zip(sizes, inputs, originals, strict=True)]

    def errors(self, weight: Tensor, rounded: Tensor, shift: Tensor | None) -> tuple[float, float]:
        """Squared norms of W x0 and of what a layer of ``rounded`` and ``shift`` lacks of it. Without a bias to take it up, the mean
        is part of the error."""
        wanted = (self.inputs if self.originals is None else self.originals) @ weight.T
        left = wanted - self.inputs @ rounded.T
        return float(wanted.square().sum()), float((left if shift is None else left - shift).square().sum())


@dataclass
class Gram:
    """Sums over the inputs x (in,) of one linear layer: ``xx`` = sum of x xᵀ (in, in), ``total`` = sum of x, ``magnitude`` =
    sum of \\|x\\|, each float64, ``peak`` = largest \\|x\\|, float32, and ``count``, the number of inputs.

    ``drifting`` sums also hold what x lacks of its original x0: ``cross`` = sum of (x0 - x) xᵀ and ``moved`` = sum of x0 - x.
    The error of a weight change D at the layer's output is then ``tr(D xx Dᵀ)`` without the inputs themselves.

    The sum over one batch is computed in float32, and batches are added up in float64. Its 53 bits hold a sum of numbers of 24 bits
    exactly as long as no two of them, nor the sum, are more than 29 binary places apart (a factor of 5 * 10⁸). Then it does not matter in
    which order they are added, or who adds them: several ranks, each with whole batches, come to the bits of one process. Beyond,
    each addition errs by 2^-53 of the sum, which the rounding to float32 of ``pool`` hides in all but rare cases.
    """

    width: int
    device: torch.device | str = "cpu"
    count: int = 0
    drifting: bool = False
    xx: Tensor = field(init=False)
    total: Tensor = field(init=False)
    magnitude: Tensor = field(init=False)
    peak: Tensor = field(init=False)
    cross: Tensor | None = field(init=False, default=None)
    moved: Tensor = field(init=False)
    held_back: HeldBack | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.xx = torch.zeros(self.width, self.width, device=self.device, dtype=torch.float64)
        self.total, self.magnitude, self.moved = (torch.zeros(self.width, device=self.device, dtype=torch.float64) for _ in range(3))
        self.peak = torch.zeros(self.width, device=self.device)
        # Of what is held back: the batch, and how many inputs.
        self._held: list[tuple[int, int]] = []
        if self.drifting:
            self.cross = torch.zeros_like(self.xx)

    @classmethod
    def of(cls, xx: Tensor, total: Tensor, count: int, held_back: HeldBack | None) -> Gram:
        """Sums that were gathered elsewhere, of products (in, in) and of inputs (in,); magnitudes are not known."""
        gram = cls(0, xx.device, count)
        gram.width, gram.xx, gram.total, gram.moved, gram.held_back = len(total), xx, total, torch.zeros_like(total), held_back
        return gram

    def add(self, x: Tensor, keep: Tensor | None = None, original: Tensor | None = None) -> None:
        """Inputs (..., in), and where the sums are ``drifting`` what they were in the original model; ``keep`` is bool of the
        leading shape and leaves padding out; of tokens that were picked or sorted, as an expert's are, it says nothing, and all
        count. Original inputs of another number have no pair here. Raises EngineError for NaN or infinity."""
        rows = self._rows(x, keep)
        if not len(rows):
            return
        peak = rows.abs().amax(0)
        if not torch.isfinite(peak).all():
            raise EngineError("a layer's inputs hold NaN or infinity on the calibration text: the model cannot be calibrated")
        add_product(self.xx, rows, rows)
        self.total += rows.sum(0)
        self.magnitude += rows.abs().sum(0)
        self.peak = torch.maximum(self.peak, peak)
        self.count += len(rows)
        if self.cross is not None and original is not None and original.numel() == x.numel():
            drift = self._rows(original, keep) - rows
            add_product(self.cross, drift, rows)
            self.moved += drift.sum(0)

    def pool(self) -> None:
        """End the gathering: take in what the other ranks have gathered, each from its part of the text. Products are kept in float32
        from here on, half as large."""
        self.xx = ranks.total(self.xx).to(torch.float32)
        if self.cross is not None:
            self.cross = ranks.total(self.cross).to(torch.float32)
        if not ranks.several():
            return
        self.total, self.magnitude, self.moved = (ranks.total(one) for one in (self.total, self.magnitude, self.moved))
        own = None if self.held_back is None else self.held_back.to("cpu")
        several = ranks.gathered((self.count, self.peak.cpu(), own, self._held))
        self.count = sum(count for count, _, _, _ in several)
        self.peak = torch.stack([peak for _, peak, _, _ in several]).amax(0).to(self.device)
        parts = [part for _, _, one, sizes in several if one is not None for part in one.parts(sizes)]
        if parts:
            held = [part for _, part in sorted(parts, key=lambda part: part[0])]
            originals = [one.originals for one in held if one.originals is not None]
            whole = HeldBack(torch.cat([one.inputs for one in held]), torch.cat(originals) if originals else None)
            self.held_back = whole.to(self.device)

    def release(self) -> None:
        """Give the memory of the products up; what is known of single inputs stays."""
        self.xx, self.cross = torch.empty(0, 0, device=self.device), None

    def hold_back(self, x: Tensor, held: Tensor, original: Tensor | None = None, turn: int = 0) -> None:
        """Keep the inputs (..., in) that ``held``, bool of the leading shape, names for judging."""
        rows, before = self._rows(x, held), None if original is None else self._rows(original, held)
        self._held.append((turn, len(rows)))
        if self.held_back is not None:
            rows = torch.cat([self.held_back.inputs, rows])
            before = None if before is None or self.held_back.originals is None else torch.cat([self.held_back.originals, before])
        self.held_back = HeldBack(rows, before) if len(rows) else None

    def gap(self, weight: Tensor, rounded: Tensor, whole: bool = False) -> Tensor:
        """The mean (out,) of W x0 - Ŵ x, which a bias takes up; with ``whole`` over the inputs that are held back too."""
        total, moved, count = self.total, self.moved, self.seen
        if whole and self.held_back is not None:
            x, x0 = self.held_back.inputs, self.held_back.originals
            total, count = total + x.sum(0), count + len(x)
            moved = moved if x0 is None else moved + (x0 - x).sum(0)
        return weight @ ((total + moved) / count).to(torch.float32) - rounded @ (total / count).to(torch.float32)

    def _rows(self, x: Tensor, keep: Tensor | None) -> Tensor:
        rows = x.detach().reshape(-1, self.width).to(torch.float32)
        return counted(rows, keep)

    @property
    def second(self) -> Tensor:
        """Mean of x xᵀ (in, in), float32."""
        return (self.xx / self.seen).to(torch.float32)

    @property
    def mean(self) -> Tensor:
        return (self.total / self.seen).to(torch.float32)

    @property
    def mean_magnitude(self) -> Tensor:
        return (self.magnitude / self.seen).to(torch.float32)

    def moments(self, centred: bool = False) -> Tensor:
        """Mean of x xᵀ (in, in); ``centred`` leaves the part of the means out, which the bias of a layer can take up."""
        return self._about(self.xx, self.total) if centred else self.second

    def drift(self, centred: bool = False) -> Tensor | None:
        """Mean of (x0 - x) xᵀ (in, in), the means taken out where ``centred``; None where it was not gathered."""
        if self.cross is None:
            return None
        return self._about(self.cross, self.moved) if centred else (self.cross / self.seen).to(torch.float32)

    def _about(self, product: Tensor, left: Tensor) -> Tensor:
        lefts, rights = ((one.to(torch.float64) / self.seen) for one in (left, self.total))
        found = torch.empty(product.shape, device=product.device)
        for part in strips(len(product)):
            found[part] = product[part].to(torch.float64).div_(self.seen).sub_(lefts[part, None] * rights)
        return found

    @property
    def seen(self) -> int:
        if not self.count:
            raise EngineError("no calibration input reached a layer: give calibration text that is not empty")
        return self.count


def counted(rows: Tensor, keep: Tensor | None) -> Tensor:
    """The ``rows`` (n, in) that ``keep``, bool (batch, tokens), lets count; all where they are not one or several for each token."""
    if keep is None or len(rows) % keep.numel():
        return rows
    return rows[keep.reshape(-1).repeat(len(rows) // keep.numel())]


def shrunk(second: Tensor, count: int) -> Tensor:
    """Second moments (in, in) of ``count`` inputs with the products of different inputs drawn towards zero, by
    in / (in + count / SHRINKAGE): what few inputs say of them is mostly chance (shrinkage as in Ledoit & Wolf 2004,
    doi:10.1016/S0047-259X(03)00096-4, towards the diagonal and by this share instead of an estimated one)."""
    return scaled_apart_(second.clone(), share_kept(len(second), count))


def share_kept(inputs: int, count: int) -> float:
    """What ``shrunk`` leaves of the products of different ones of so many ``inputs``, where ``count`` inputs were seen."""
    share = inputs / (inputs + count / SHRINKAGE)
    return 1 - share


def scaled_apart_(second: Tensor, factor: float) -> Tensor:
    """``second`` (in, in) in place, all but its diagonal times ``factor``."""
    diagonal = second.diagonal().clone()
    second.mul_(factor).diagonal().copy_(diagonal)
    return second


def output_error(change: Tensor, second: Tensor) -> Tensor:
    """Mean squared output error of each row of a weight change (out, in), by the inputs' second moments (in, in)."""
    return (change @ second).mul_(change).sum(1)


def strips(rows: int) -> Iterator[slice]:
    """``rows`` of a matrix, ``STRIP`` at a time."""
    return (slice(start, min(start + STRIP, rows)) for start in range(0, rows, STRIP))


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add leftᵀ right, of float32 rows (..., n, a) and (..., n, b), to the float64 ``total`` (..., a, b): the product is float32."""
    for part in strips(total.shape[-2]):
        total[..., part, :] += left[..., part].transpose(-1, -2) @ right
