"""The processes that work on one run, over ``torch.distributed``: gloo for what lies on the processor, nccl for GPUs."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from engine.errors import Cancelled, EngineError, UsageError, one_line
from engine.machine.ranks.place import Place, host
from engine.machine.ranks.place import place as asked_place
from engine.machine.ranks.watch import Gone, How, Peer, Watch

T = TypeVar("T")
E = TypeVar("E")

# Seconds that ranks wait for one another to begin; ``QTUI_RENDEZVOUS`` says otherwise.
PATIENCE = 300.0
# Of collectives: a person may think about a question, and a lost rank is noticed by other means.
_LONG = timedelta(days=7)


class LostRank(EngineError):
    """Another rank has ended, and this one cannot go on without it."""


class _Group:
    """The processes while they work together."""

    def __init__(self, at: Place, base: Any, watch: Watch) -> None:
        self.at, self.base, self.watch = at, base, watch
        self.save: Callable[[str], None] | None = None


_group: _Group | None = None
# Whether this process was in a group that is no more: it works for itself from then on.
_left = False
# Deeper than 0 where this process works for itself although there are others.
_apart = 0
# Deeper than 0 while ``shares`` fetches a batch.
_sharing = 0


def count() -> int:
    """How many ranks share the work at hand."""
    return _group.at.count if _group is not None and not _apart else 1


def number() -> int:
    """This rank among those that share the work at hand."""
    return _group.at.rank if _group is not None and not _apart else 0


def several() -> bool:
    return count() > 1


def is_first() -> bool:
    """Whether this is rank 0 of the run, which has its folder and its console."""
    return _group is None or _group.at.rank == 0


def mine(index: int) -> bool:
    """Whether the item at ``index`` is this rank's share: they go round."""
    return index % count() == number()


@contextmanager
def apart() -> Iterator[None]:
    """What is done within is this rank's own: nothing of it is shared."""
    global _apart
    _apart += 1
    try:
        yield
    finally:
        _apart -= 1


def shares(batches: Iterable[T]) -> Iterator[tuple[int, T, bool]]:
    """Each of ``batches`` with its number and whether it is this rank's. Of those that are not, data that are read from disk may
    hold less than they count: see ``is_read``."""
    global _sharing
    rest = iter(batches)
    for index in itertools.count():
        _sharing += 1
        try:
            batch = next(rest)
        except StopIteration:
            return
        finally:
            _sharing -= 1
        yield index, batch, mine(index)


def is_read(index: int) -> bool:
    """Whether a data set has to read the batch at ``index`` of a split: not where ``shares`` asks for it and it is another rank's."""
    return not _sharing or mine(index)


def join() -> Place:
    """Meet the other ranks that the environment names, once in a process.

    Raises UsageError for an environment that cannot be and for ranks of different versions, EngineError where they do not come.
    """
    global _group
    if _group is not None:
        return _group.at
    at = asked_place()
    if at.count == 1 or _left:
        return at
    _group = _met(at)
    atexit.register(leave, "done")
    same(_versions(), "versions", "install the same on all hosts")
    return at


def when_lost(save: Callable[[str], None] | None) -> None:
    """While a run works: what saves its state, given one line, where a rank was lost and this one waits for it in a call that nothing
    wakes. It is called from another thread, and the process ends then. None afterwards."""
    if _group is not None:
        _group.save = save


def _met(at: Place) -> _Group:
    import torch
    import torch.distributed as dist

    patience = _patience()
    until = time.monotonic() + patience
    where = f"{at.host}:{at.port}"
    try:
        base, other = (_store(dist, at, patience) for _ in range(2))
    except (RuntimeError, ValueError) as error:
        raise EngineError(
            f"rank {at.rank} of {at.count} met nobody at {where} within {patience:.0f} s: start the others, or look at the "
            f"rendezvous endpoint ({one_line(error, 80)})"
        ) from error
    store, watched = (_prefixed(f"qtui/{at.attempt}", one) for one in (base, other))
    store.set(f"card/{at.rank}", json.dumps([host(), os.getpid()]))
    store.set(f"beat/{at.rank}", "0")
    peers = []
    for rank in range(at.count):
        try:
            store.wait([f"card/{rank}", f"beat/{rank}"], timedelta(seconds=max(until - time.monotonic(), 0.05)))
        except (RuntimeError, ValueError) as error:
            missing = [str(one) for one in range(at.count) if not store.check([f"card/{one}"])]
            many = f"rank{'' if len(missing) == 1 else 's'} {', '.join(missing)}"
            raise EngineError(
                f"{many} of {at.count} did not come to {where} within {patience:.0f} s: start all of them, or ask for fewer"
            ) from error
        if rank != at.rank:
            name, process = json.loads(store.get(f"card/{rank}"))
            peers.append(Peer(rank, name, process))
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices:
        torch.cuda.set_device(at.local % devices)
    # nccl wants a GPU for each rank; gloo takes what lies on a GPU through the processor.
    name = host()
    cuda = dist.is_nccl_available() and sum(peer.host == name for peer in peers) < devices
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", store=_prefixed("group", store), rank=at.rank, world_size=at.count,
            timeout=_LONG,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"the {at.count} ranks cannot be connected ({one_line(error, 120)}): look at the network of {host()}") from error
    return _Group(at, base, Watch(watched, at, peers, _give_up))


def _prefixed(prefix: str, store: Any) -> Any:
    from torch.distributed.distributed_c10d import PrefixStore

    return PrefixStore(prefix, store)


def _store(dist: Any, at: Place, patience: float) -> Any:
    """A connection to the store that all meet at; its first one on rank 0 holds it, unless the launcher does."""
    holds = at.is_first and not at.agent and not _held
    store = dist.TCPStore(
        at.host, at.port, None, holds, timeout=timedelta(seconds=patience), wait_for_workers=False, multi_tenant=True
    )  # fmt: skip
    if holds:
        _held.append(store)
    return store


# The store that this process holds for all: it lasts as long as the process.
_held: list[Any] = []


def _patience() -> float:
    try:
        return max(float(os.environ.get("QTUI_RENDEZVOUS") or PATIENCE), 1.0)
    except ValueError:
        raise UsageError(f"QTUI_RENDEZVOUS={os.environ['QTUI_RENDEZVOUS']!r} is no number of seconds") from None


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    for package in ("qtui", "torch", "numpy", "transformers"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def same(about: dict[str, Any], what: str, step: str) -> None:
    """Nothing where all ranks say the same ``about`` themselves; UsageError, with the first difference and the next ``step``."""
    if not several():
        return
    first, *others = gathered(about)
    for rank, other in enumerate(others, 1):
        for key in sorted({*first, *other}):
            if first.get(key) != other.get(key):
                text = f"ranks have different {what}: {key} is {first.get(key)} on rank 0 and {other.get(key)} on rank {rank}: {step}"
                raise UsageError(text)


@contextmanager
def _together() -> Iterator[None]:
    """A broken connection in here says that a rank has gone; which, and why, it has left word of, or nothing did."""
    try:
        yield
    except RuntimeError as error:
        assert _group is not None
        gone = _group.watch.gone(patience=5.0, done=True)
        if gone is not None and gone.how == "stopped":
            raise Cancelled from error
        if gone is not None:
            raise LostRank(_lost(gone)) from error
        raise LostRank(f"the connection between ranks broke ({one_line(error, 160)}): look at the network") from error


def _lost(gone: Gone) -> str:
    return f"{gone.peer} {'failed: ' if gone.how == 'failed' else ''}{gone.reason}"


def missed() -> str | None:
    """Which rank was lost, where one was: what a signal to stop may be a consequence of."""
    if _group is None:
        return None
    gone = _group.watch.gone(patience=1.0)
    return None if gone is None or gone.how == "stopped" else _lost(gone)


def gathered(value: T) -> list[T]:
    """The ``value`` of each rank, in their order."""
    if not several():
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * count()
    with _together():
        dist.all_gather_object(found, value)
    return found


def of_first(value: T, owner: int = 0) -> T:
    """What rank ``owner`` has as ``value``, on all ranks."""
    if not several():
        return value
    import torch
    import torch.distributed as dist

    box = [value if number() == owner else None]
    with _together():
        dist.broadcast_object_list(box, src=owner, device=torch.device("cpu"))
    found: Any = box[0]
    return found  # type: ignore[no-any-return]


def called_by_first(compute: Callable[[], T]) -> T:
    """What ``compute`` returns on rank 0, on all ranks; an error of the engine's is raised on all of them."""
    if not several():
        return compute()
    found: tuple[Any, BaseException | None] = (None, None)
    if number() == 0:
        try:
            with apart():
                found = (compute(), None)
        except EngineError as error:
            found = (None, error)
    value, raised = of_first(found)
    if raised is not None:
        raise raised
    return value  # type: ignore[no-any-return]


def by_first(steps: Generator[E, Any, T]) -> Generator[E, Any, T]:
    """``steps`` on rank 0, which alone says something; what they return, on all ranks. Errors as ``called_by_first``."""
    if not several():
        return (yield from steps)
    found: tuple[Any, BaseException | None] = (None, None)
    if number() == 0:
        try:
            with apart():
                found = ((yield from steps), None)
        except EngineError as error:
            found = (None, error)
    else:
        steps.close()
    value, raised = of_first(found)
    if raised is not None:
        raise raised
    return value  # type: ignore[no-any-return]


def total(value: Any) -> Any:
    """The sum of a tensor over all ranks, added up in float64 and in one order for all; in the tensor's own type and place. One that is
    float64 is overwritten with it."""
    if not several():
        return value
    import torch
    import torch.distributed as dist

    whole = value.to(torch.float64) if value.is_floating_point() else value.clone()
    whole = whole.contiguous()
    with _together():
        dist.all_reduce(whole)
    return whole.to(value.dtype)


def heard() -> list[dict[str, Any]]:
    """What each of the other ranks takes of its machine, the fields of ``usage.Usage``; nothing where there is none."""
    return [] if _group is None else _group.watch.heard()


def remember(key: str, value: str) -> None:
    """Note ``value`` where ranks that are started again find it: the launcher holds the store over all attempts."""
    if _group is not None:
        with contextlib.suppress(RuntimeError):
            _of_all_attempts(_group).set(key, value)


def remembered(key: str) -> str | None:
    """What was noted as ``key``, in this attempt or one before; None for nothing."""
    if _group is None:
        return None
    notes = _of_all_attempts(_group)
    return bytes(notes.get(key)).decode() if notes.check([key]) else None


def _of_all_attempts(group: _Group) -> Any:
    return _prefixed("qtui/all", group.base)


def added_up(value: Any) -> Any:
    """The sum of a tensor over all ranks, in its own type: in place."""
    import torch.distributed as dist

    with _together():
        dist.all_reduce(value)
    return value


def leave(how: How, reason: str = "") -> None:
    """Tell the others that this rank goes, and why; nothing is shared afterwards."""
    global _group, _left
    group, _group = _group, None
    if group is None:
        return
    _left = True
    import torch.distributed as dist

    group.watch.leave(how, reason)
    with contextlib.suppress(RuntimeError, ValueError):
        if how == "done":
            dist.destroy_process_group()


def _give_up(gone: Gone) -> None:
    """A rank was lost and the main thread still waits for it."""
    group = _group
    if group is None or group.save is None:
        return
    text = _lost(gone)
    with contextlib.suppress(Exception):
        group.save(text)
    with contextlib.suppress(OSError):
        if group.at.is_first:
            os.write(2, f"error: {text}\n".encode())
    os._exit(1)
