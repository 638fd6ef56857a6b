"""AutoRound: the rounding of all matrices of a block is learned on what the block gives (arXiv:2309.05516, algorithm 1).

The quantized block reads what the quantized blocks before it put out, and is to give what the block in floats gives on the inputs that
were never rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from engine.algorithms.sign_rounding import SignRounding, sign_step
from engine.events.cancellation import StopToken
from engine.lowering.modules.block_linears import Linear
from engine.lowering.modules.capture import Batch, hidden_of, run_block
from engine.numerics.qtensor import QTensor
from engine.numerics.scheme import WeightScheme
from engine.numerics.sqnr import sqnr_db

# Steps of a block, and how far the first one moves: the paper's 200 and 1 / 200; the rate falls to 0 along a line.
STEPS = 200
# One batch in so many is held back to judge by.
HELD = 8


@dataclass(frozen=True)
class Tuned:
    """``note`` says what was gained on text held back; ``weights`` by the names of the layers."""

    weights: dict[str, QTensor]
    note: str


def tune(
    block: nn.Module, before: nn.Module, batches: Sequence[Batch], index: int, wanted: Sequence[tuple[Linear, WeightScheme]],
    stop: StopToken, steps: int | None = None,
) -> Tuned:  # fmt: skip
    """The codes of the layers ``wanted`` of ``block``, the decoder's ``index``-th, whose weights are still floats; ``before`` is the block
    with nothing rounded, other layers of ``block`` may be rounded already. Nothing is changed. ``steps`` are ``STEPS`` by default.

    What was learned is taken where it has less error on batches held back than rounding to nearest on the min-max grid, else this is.
    Raises Cancelled at the next step when ``stop`` is set.
    """
    steps = STEPS if steps is None else steps
    soft = {linear.name: SignRounding(linear.read(), scheme) for linear, scheme in wanted}
    names = _parameters(block, [linear for linear, _ in wanted])
    with torch.no_grad():
        targets = [run_block(before, batch, index, original=batch.original is not None) for batch in batches]
    held = list(range(HELD - 1, len(batches), HELD)) or [len(batches) - 1]
    learned = [at for at in range(len(batches)) if at not in held] or held
    nearest = {linear.name: soft[linear.name].rounded() for linear, _ in wanted}
    signal = sum(float((targets[at] - batches[at].hidden).square().sum()) for at in held)

    def error(at: int, weights: dict[str, Tensor]) -> Tensor:
        given = {names[linear.name]: weights[linear.name].T if linear.transposed else weights[linear.name] for linear, _ in wanted}
        args, named = batches[at].others[index]
        left = hidden_of(functional_call(block, given, (batches[at].hidden, *args), named), index)
        square = (left - targets[at]).square()
        keep = batches[at].keep
        return square.mean() if keep is None else square[keep].mean()

    def judged(found: dict[str, QTensor]) -> float:
        weights = {name: weight.dequantize() for name, weight in found.items()}
        with torch.no_grad():
            return sum(float(error(at, weights)) * batches[at].hidden.numel() for at in held)

    draw = torch.Generator().manual_seed(index)
    with torch.enable_grad():
        for step in range(steps):
            stop.check()
            at = learned[int(torch.randint(len(learned), (1,), generator=draw))]
            error(at, {name: module() for name, module in soft.items()}).backward()  # type: ignore[no-untyped-call]
            sign_step(list(soft.values()), (1 - step / steps) / steps)
    tuned = {name: module.rounded() for name, module in soft.items()}
    old, new = judged(nearest), judged(tuned)
    was, now = (sqnr_db(signal, max(noise, 1e-30)) for noise in (old, new))
    if new < old:
        return Tuned(tuned, f"its block: {now:.1f} dB on calibration text held back, against {was:.1f} dB rounded to nearest")
    return Tuned(nearest, f"rounded to nearest: its block has {was:.1f} dB on calibration text held back, against {now:.1f} dB")


def _parameters(block: nn.Module, layers: Sequence[Linear]) -> dict[str, str]:
    """The names of the layers' weights among the block's parameters."""
    places: dict[int, str] = {id(parameter): name for name, parameter in block.named_parameters()}
    return {linear.name: places[id(linear.held)] for linear in layers}
