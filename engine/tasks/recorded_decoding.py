"""Tokens that a GPU writes one by one as a recorded CUDA graph.

One token is so little work that launching its kernels takes longer than they do. A recorded step launches all of them at once. It
reads and writes the same memory each time, so keys and values lie in a cache of fixed size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, one_line
from engine.tasks.decode_timing import Step, step_of

# Runs one step, and gives what runs it again on the same memory.
Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
# Attention over a cache of another length sums in another order; steps of activations that are rounded flip where it does.
_CLOSE = 0.05


def cuda_graph(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """``run`` recorded. It is called some times on a stream of its own before, so that libraries have made their workspaces."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def play() -> Tensor:
        graph.replay()
        return out

    return play


def quickest(model: Any, device: str, length: int) -> Step:
    """The step of ``model`` that writes fastest on ``device``, for texts of up to ``length`` tokens where it is recorded."""
    # A recording has a cache of its own, in floats.
    return Recorded(model, length) if device == "cuda" and not getattr(model, "cache_in_codes", False) else step_of(model)


class Recorded:
    """``step_of(model)`` for one text at a time, of ``length`` tokens at most. A text is read as it is without a recording; the first
    token after it makes one, and compares it with the step that it stands for. Where they differ, or where the model keeps its past
    in another way, tokens are written without: ``why`` says what was wrong, and is None while nothing was. A text that is read with
    more tokens than ``length`` is continued without, too.

    Raises EngineError where a text that is being written grows beyond ``length``, or by several tokens at once.
    """

    def __init__(self, model: Any, length: int, record: Record = cuda_graph) -> None:
        self.why: str | None = None
        self._step, self._length, self._record = step_of(model), length, record
        self._cache: Any = None
        self._ids: Tensor = torch.empty(0)
        self._play: Callable[[], Tensor] | None = None
        self._used = 0

    @property
    def recorded(self) -> bool:
        return self._play is not None

    def __call__(self, ids: Tensor, past: Any) -> tuple[Tensor, Any]:
        if past is not None and past is self._cache:
            return self._next(ids), past
        if past is None or ids.shape != (1, 1) or self.why is not None or past.get_seq_length() >= self._length:
            return self._step(ids, past)
        if self._play is None and not self._recording(ids, past):
            return self._step(ids, past)
        self._take(past)
        return self._next(ids), self._cache

    def _next(self, ids: Tensor) -> Tensor:
        if ids.shape != (1, 1):
            raise EngineError(f"a text that is being written takes one token at a time, not ids of shape {tuple(ids.shape)}")
        if self._used >= self._length:
            raise EngineError(f"a recorded step has room for {self._length:,} tokens: record one with a larger length")
        assert self._play is not None
        self._used += 1
        self._ids.copy_(ids)
        return self._play().clone()

    def _take(self, past: Any) -> None:
        """The keys and values of a text that was read, in the memory of the recording."""
        self._cache.reset()
        for layer, read in zip(self._cache.layers, past.layers, strict=True):
            layer.update(read.keys, read.values)
        self._used = past.get_seq_length()

    def _recording(self, ids: Tensor, past: Any) -> bool:
        """Whether there is a recording that gives what the step itself gives after ``past``, which stays as it is."""
        expected, _ = self._step(ids, copy.deepcopy(past))
        try:
            self._prepare(ids, past)
            self._play = self._record(lambda: self._step(self._ids, self._cache)[0])
            self._take(past)
            got = self._next(ids)
        except EngineError:
            raise
        # What transformers keeps a past in is its own, and a capture fails in as many ways as a model computes.
        except Exception as error:
            self._play, self.why = None, f"{type(error).__name__} while it was recorded: {one_line(error)}"
            return False
        off = float((got.float() - expected.float()).norm() / expected.float().norm())
        if not off < _CLOSE:
            self._play, self.why = None, f"the recording is off by {off:.0%}"
        return self._play is not None

    def _prepare(self, ids: Tensor, past: Any) -> None:
        from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

        for layer in past.layers:
            # A window that slides is counted outside of the GPU: a recording would not see it move.
            if not isinstance(layer, DynamicLayer) or getattr(layer, "sliding_window", self._length) < self._length:
                raise TypeError(f"{type(layer).__name__} keeps its past in another way")
        self._ids = ids.clone()
        self._cache = Cache(layers=[StaticLayer(self._length) for _ in past.layers])
        self._take(past)
