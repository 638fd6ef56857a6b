"""What a run over a decoder will take, told from shapes before anything is read: memory, disk and time."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.algorithms.matrix import quantize_matrix
from engine.algorithms.registry import METHODS, method
from engine.events.rows import LayerRow
from engine.models.anatomy import Anatomy, blocks_of, weight_of
from engine.models.unread import Source, forget, in_block
from engine.numerics.scheme import scheme_of
from engine.planning.size import weight_bytes

# What Python, torch and transformers take, with the buffers of a block's kernels.
BASE = 10**9
_FLOAT = 4
# Matrices (in, in) of float32 numbers that a method has at once: the sums, the moments that are made of them, and GPTQ's factor in
# doubles. A walk over LLaMA's blocks, 11,008 inputs at most, peaked at 4.2 GB where 4.7 are told. Where errors are carried from block to
# block there are the sums of what was lost too, and both are doubles while a text is read.
_GRAMS, _CARRIED = 4, 7
# Matrices (out, in) of float32 numbers beside them: what is left of a weight to round, and candidates for its grid.
_WEIGHTS = 4
# Copies of a block in float32: itself, as it was, and what the kernels are made from.
_COPIES = 3
# Tokens and rows of a matrix that are timed.
_TOKENS, _ROWS = 64, 256
# A block is read, told from others by its content, and its integers are written and put on kernels: some readings' time each.
_READS = 4
# Calibration runs a block up to each group of matrices, and once more to its end.
_PASSES = 4


@dataclass(frozen=True)
class Sizes:
    """Bytes of a walk: ``memory`` at most, ``blocks`` of the integers of finished blocks, ``file`` of the model's file. ``hidden`` are
    those of hidden states, in memory or on disk."""

    memory: int
    blocks: int
    file: int
    hidden: int

    def disk(self, exports: Sequence[str], fits: int) -> int:
        """With the formats that are to be written beside the model's file; hidden states of ``fits`` bytes stay in memory."""
        others = sum(self.file for name in exports if name != "safetensors")
        return self.blocks + self.file + others + (self.hidden if self.hidden > fits else 0)


def sizes_of(model: Any, parts: Anatomy, rows: Sequence[LayerRow], tokens: int, calibration: int) -> Sizes:
    """``tokens`` are measured in both forms, ``calibration`` tokens are run where a method looks at inputs."""
    by_path = {row.path: row for row in rows}
    path, blocks = blocks_of(model)
    widths = [_bytes(block) for block in blocks]
    outside = _bytes(model) - sum(widths)
    methods = {row.actual.weights.method for row in rows if row.actual.weights is not None and row.capabilities.role == "block"}
    looks, carries = (any(getattr(METHODS[name], what) for name in methods) for what in ("needs_inputs", "carries"))
    shapes = [matrix.shape for matrix in parts.matrices if matrix.block is not None and matrix.kind != "Embedding"]
    grams = (_CARRIED if carries else _GRAMS) * max((width**2 for _, width in shapes), default=0)
    rounding = _FLOAT * (grams + _WEIGHTS * max((out * width for out, width in shapes), default=0)) if looks else 0
    width = int(model.get_input_embeddings().weight.shape[1])
    hidden = _FLOAT * width * (2 * tokens + (2 * calibration if looks else 0))
    stored = {
        matrix.path: weight_bytes(by_path[matrix.path], by_path[matrix.path].actual.weights)
        for matrix in parts.matrices if matrix.path in by_path
    }  # fmt: skip
    rest = _FLOAT * sum(parts.others.values()) + _FLOAT * sum(matrix.shape[0] for matrix in parts.matrices if matrix.bias)
    inside = sum(size for name, size in stored.items() if name.startswith(f"{path}."))
    # What stands around the blocks is in memory in float32 before and after them, and as integers beside them.
    around = _COPIES * max(widths) + outside
    within = (1 + carries) * max(widths) + sum(stored.values()) - inside + rounding
    return Sizes(max(around, within) + BASE, inside + rest, sum(stored.values()) + rest, hidden)


def _bytes(module: Any) -> int:
    return _FLOAT * sum(int(parameter.numel()) for parameter in module.parameters())


@dataclass(frozen=True)
class TimedBlock:
    """Seconds of one block: ``read`` it from its files, ``token`` run one token through its matrices, ``number`` round one of its weights
    to nearest."""

    read: float
    token: float
    number: float

    def seconds(self, depth: int, rows: Sequence[LayerRow], tokens: int, calibration: int) -> tuple[float, tuple[str, ...]]:
        """Of ``depth`` blocks whose matrices are ``rows``; and the methods of ``rows`` whose own time is not known."""
        names = {row.actual.weights.method for row in rows if row.actual.weights is not None}
        unmeasured = tuple(sorted(name for name in names if METHODS[name].needs_inputs))
        numbers = sum(row.params for row in rows)
        passes = 2 * tokens + _PASSES * calibration * bool(unmeasured)
        return depth * (_READS * self.read + passes * self.token + numbers * self.number), unmeasured


@torch.no_grad()
def timed_block(model: Any, source: Source, rows: Sequence[LayerRow]) -> TimedBlock:
    """Read block 0 of ``model``, whose matrices are ``rows``, and forget it again."""
    block = blocks_of(model)[1][0]
    start = time.perf_counter()
    source.read_into(model, in_block(model, 0))
    read = time.perf_counter()
    tokens, rounded = torch.ones(_TOKENS, 1), 0
    weights = [weight_of(model.get_submodule(row.path)) for row in rows]
    for weight in weights:
        tokens.expand(-1, weight.shape[1]) @ weight.T
    ran = time.perf_counter()
    for row, weight in zip(rows, weights, strict=True):
        assert row.actual.weights is not None
        part = weight[:_ROWS].contiguous()
        quantize_matrix(part, scheme_of(row.actual.weights), method("nearest"), None, False)
        rounded += part.numel()
    ended = time.perf_counter()
    del weights
    forget(block)
    return TimedBlock(read - start, (ran - read) / _TOKENS, (ended - ran) / max(rounded, 1))


def free_in(place: Path) -> int | None:
    """Free bytes where ``place`` is or is to be; None where the system does not tell."""
    try:
        return shutil.disk_usage(next(folder for folder in (place, *place.absolute().parents) if folder.exists())).free
    except (OSError, StopIteration):
        return None


def short_of(memory: int, disk: int, free: Mapping[str, int | None]) -> str:
    """Why a run cannot end well, in a sentence; empty where it can."""
    room, space = free.get("memory"), free.get("disk")
    if space is not None and disk > space:
        what = f"the run needs about {disk / 1e9:.1f} GB of disk and {space / 1e9:.1f} GB are free"
        return f"{what}: give --out on another disk, or fewer exports"
    if room is not None and memory > room:
        what = f"the run needs up to {memory / 1e9:.1f} GB of memory and {room / 1e9:.1f} GB are free"
        return f"{what}: end other programs, or take a larger machine"
    return ""


def said(memory: int, disk: int, seconds: float | None, unmeasured: Sequence[str], free: Mapping[str, int | None]) -> str:
    """The sentence for a person; ``unmeasured`` are methods whose own time is not in ``seconds``."""
    text = f"memory at most {memory / 1e9:.1f} GB{_of(free.get('memory'))}, disk {disk / 1e9:.1f} GB{_of(free.get('disk'))}"
    if seconds is not None:
        besides = f" without the rounding by {', '.join(unmeasured)}" if unmeasured else ""
        minutes = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} s"
        text += f", about {minutes}{besides}"
    return text


def _of(free: int | None) -> str:
    return "" if free is None else f" of {free / 1e9:.1f} GB free"
