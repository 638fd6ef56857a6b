"""What enters the blocks of a decoder: its embeddings are run once, its blocks not at all."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.models.anatomy import blocks_of

Returned = Callable[[Tensor], object]
"""Hidden states to what a block returns of them."""


class Reached(Exception):
    """Ends a forward pass that has given what was wanted of it."""


@dataclass
class Batch:
    """Hidden states (batch, tokens, width) on the way into a block, and what each block is given beside them.

    ``keep`` is bool (batch, tokens), False at padding, or None where there is none. ``others[i]`` are block i's remaining
    positional and keyword arguments: masks and positions, which the blocks share, and where one block reads keys and values of an
    earlier one, the mapping in which they are left. ``original`` is what ``hidden`` would be were nothing quantized, None where
    nobody asks, and ``original_others`` are the arguments beside it, whose mappings are their own. ``turn`` is its number among those
    of all ranks; one that does not count in sums is another rank's, and here to look at the blocks with.
    """

    hidden: Tensor
    keep: Tensor | None
    others: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    original: Tensor | None = None
    original_others: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    turn: int = 0
    counts: bool = True

    def keep_original(self) -> None:
        """Let ``original`` begin as what enters now."""
        self.original, self.original_others = self.hidden, _separated(self.others)


def run_block(block: nn.Module, batch: Batch, index: int, original: bool = False) -> Tensor:
    """The hidden states that leave ``block``, the decoder's ``index``-th, when the batch's own enter, or its ``original`` ones."""
    args, named = (batch.original_others if original else batch.others)[index]
    return hidden_of(block(batch.original if original else batch.hidden, *args, **named), index)


def hidden_of(output: Any, index: int) -> Tensor:
    """The hidden states in what block ``index`` returned: a tensor, or a sequence that begins with one."""
    left = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(left, Tensor):
        raise EngineError(f"block {index} returns {type(left).__name__} where hidden states belong: it cannot be quantized block by block")
    return left


def left_beside(batch: Batch, index: int) -> list[Tensor]:
    """The tensors in the mappings that block ``index`` was given: keys and values that later blocks read."""
    args, named = batch.others[index]
    return [tensor for given in (*args, *named.values()) if isinstance(given, MutableMapping) for tensor in _tensors(given.values())]


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        found += [value] if isinstance(value, Tensor) else _tensors(value) if isinstance(value, tuple | list) else []
    return found


def _separated(others: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The same arguments with copies of the mappings; those that blocks share are shared by the copies."""
    copies: dict[int, Any] = {}

    def own(given: Any) -> Any:
        return copies.setdefault(id(given), copy.copy(given)) if isinstance(given, MutableMapping) else given

    return [(tuple(own(given) for given in args), {name: own(given) for name, given in named.items()}) for args, named in others]


@torch.no_grad()
def capture(
    forward: Callable[[Tensor], object],
    blocks: Sequence[nn.Module],
    texts: Iterable[tuple[Tensor, Tensor | None]],
    stop: StopToken | None = None,
    returned: Returned | None = None,
) -> list[Batch]:
    """The batches that enter ``blocks``, from token ids (batch, tokens) and masks of what is kept.

    ``forward`` runs the decoder on ids, without a cache of keys and values; padding belongs on the right, where no token
    that is kept can see it. ``returned`` is what blocks return; without it the first block is run to see. Raises EngineError where the
    blocks are not reached.
    """
    batches = []
    for ids, keep in texts:
        if stop is not None:
            stop.check()
        batches.append(_one(forward, blocks, ids, keep, returned))
    if not batches:
        raise EngineError("there is no calibration text: give text that is not empty")
    return batches


def returned_by(block: nn.Module, batch: Batch, index: int) -> Returned:
    """What ``block``, the decoder's ``index``-th, makes of the hidden states that leave it: themselves, or a sequence that begins with
    them."""
    args, named = batch.others[index]
    return _returned(block(batch.hidden, *args, **named), index)


def _returned(left: object, index: int) -> Returned:
    hidden_of(left, index)
    beside = list(left[1:]) if isinstance(left, tuple | list) else None
    return lambda hidden: hidden if beside is None else (hidden, *beside)


def _one(
    forward: Callable[[Tensor], object], blocks: Sequence[nn.Module], ids: Tensor, keep: Tensor | None, returned: Returned | None = None
) -> Batch:
    batch: Batch | None = None

    def recorder(index: int, original: Callable[..., object]) -> Callable[..., object]:
        def record(*args: Any, **named: Any) -> object:
            nonlocal batch, returned
            # By whatever name the block's first argument goes.
            hidden = args[0] if args else named.pop(next(iter(inspect.signature(original).parameters)), None)
            if not isinstance(hidden, Tensor) or len(batch.others if batch else ()) != index:
                raise EngineError("the model does not hand hidden states from block to block: it cannot be quantized block by block")
            if index == 0:
                # A decoder takes from its blocks either a tensor or a sequence that begins with one: the first block tells.
                returned = returned or _returned(original(*(args or (hidden,)), **named), index)
                batch = Batch(hidden, keep)
            assert batch is not None and returned is not None
            batch.others.append((tuple(args[1:]), dict(named)))
            if index == len(blocks) - 1:
                raise Reached
            return returned(hidden)

        return record

    try:
        with _instead(blocks, [recorder(index, block.forward) for index, block in enumerate(blocks)]):
            forward(ids)
    except Reached:
        assert batch is not None
        return batch
    raise EngineError("the model does not run its blocks one after the other: it cannot be quantized block by block")


def leaving(decoder: Any, ids: Tensor, hidden: Tensor, returned: Returned) -> Any:
    """What ``decoder`` returns for ``ids`` (batch, tokens) where ``hidden`` leaves its last block. No block is run, and where ``embeds``
    says so no embedding either."""
    blocks = list(blocks_of(decoder)[1])
    given = {"inputs_embeds": hidden} if embeds(decoder) else {"input_ids": ids}

    def stand_in(index: int) -> Callable[..., object]:
        # In between, what enters goes through: it has the shape that the decoder expects.
        return lambda *args, **named: returned(hidden if index == len(blocks) - 1 or not args else args[0])

    with _instead(blocks, [stand_in(index) for index in range(len(blocks))]):
        return decoder(**given, use_cache=False)


def embeds(decoder: Any) -> bool:
    """Whether ``decoder`` takes hidden states, of their own width, in the place of what its embedding gives."""
    width = getattr(decoder.config, "hidden_size", None)
    taken = "inputs_embeds" in inspect.signature(type(decoder).forward).parameters
    return taken and width == decoder.get_input_embeddings().weight.shape[1]


@contextmanager
def _instead(blocks: Sequence[nn.Module], forwards: Sequence[Callable[..., object]]) -> Iterator[None]:
    """``blocks`` with other forwards, until the end of the block."""
    own = [block.__dict__.get("forward") for block in blocks]
    try:
        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = forward
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            if before is None:
                del block.forward
            else:
                block.forward = before
