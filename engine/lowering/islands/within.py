"""A model that runs with other forwards in the place of some of its modules'."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from engine.errors import EngineError
from engine.lowering.graph.call import Call

Forward = Callable[..., Any]
_ABSENT = object()


@contextmanager
def replaced(root: nn.Module, forwards: Mapping[str, Forward]) -> Iterator[None]:
    """Have the modules of ``root`` at these paths call other functions as their forward. All else of them is as it was, for code that
    reads their weights or asks for their class; so is ``root`` afterwards."""
    modules = [(root.get_submodule(path), forward) for path, forward in forwards.items()]
    before = [vars(module).get("forward", _ABSENT) for module, _ in modules]
    try:
        for module, forward in modules:
            vars(module)["forward"] = forward
        yield
    finally:
        for (module, _), own in zip(modules, before, strict=True):
            if own is _ABSENT:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = own


class WithForwards(nn.Module):
    """``root`` called with ``forwards`` in their places, by path. It is no submodule of this module: its mode, its parameters and its
    hooks are its own."""

    def __init__(self, root: nn.Module, forwards: Mapping[str, Forward]) -> None:
        super().__init__()
        self.forwards = dict(forwards)
        self._held, self._lock = (root,), threading.RLock()

    @property
    def root(self) -> nn.Module:
        return self._held[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock, replaced(self.root, self.forwards):
            return self.root(*args, **kwargs)


class IslandForward:
    """The forward of an island: ``run`` computes its results in order from its inputs in order.

    What is called in another way than ``call`` tells, on nothing, or with sizes that ``taken`` does not have, is computed by ``plain``,
    the module's own forward; ``calls`` and ``plain_calls`` count both.
    """

    def __init__(self, call: Call, taken: Call, plain: Forward, run: Callable[[tuple[Tensor, ...]], Any]) -> None:
        self.call, self.taken, self.plain, self.run = call, taken, plain, run
        self.calls = self.plain_calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        inputs = self.inputs(args, kwargs)
        if inputs is None:
            self.plain_calls += 1
            return self.plain(*args, **kwargs)
        results = self.run(inputs)
        return self.call.rebuild(results if isinstance(results, tuple) else (results,))

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...] | None:
        """The island's inputs in order, None where it cannot compute with them."""
        try:
            inputs = self.call.flatten(args, kwargs)
            self.taken.check(inputs)
        except EngineError:
            return None
        return inputs if all(x.numel() for x in inputs) else None


class WatchingForward(IslandForward):
    """Gives what the module's own forward does, after ``run`` has seen the inputs and, as it computes none, returned anything."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        inputs = self.inputs(args, kwargs)
        if inputs is None:
            self.plain_calls += 1
        else:
            self.run(inputs)
        return self.plain(*args, **kwargs)
