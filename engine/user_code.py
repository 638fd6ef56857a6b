"""A person's own code: files and packages that are imported, factories that are called, and errors that are shown as theirs."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import importlib.util
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TextIO, TypeVar

from engine.errors import Cancelled, EngineError, UsageError, nearest, one_line
from engine.plain_text import plain

T = TypeVar("T")
_MOST_SAID = 1 << 20
_ENGINE = str(Path(__file__).parent) + os.sep


def made(name: str, what: str) -> Any:
    """What the factory ``package.module:factory`` or ``path/file.py:factory`` gives; ``what`` it is to be is said in messages.

    Raises UsageError when it cannot be found, EngineError when it fails.
    """
    place, _, attribute = name.rpartition(":")
    module = _from_file(Path(place), what) if place.endswith(".py") else _from_package(place)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UsageError(f"{place} has no callable {attribute!r}: {nearest(attribute, names) if names else 'it defines none'}")
    try:
        with contained():
            return factory()
    except (Exception, SystemExit) as error:
        where = _place(error, Path(place)) if place.endswith(".py") else ""
        raise EngineError(
            f"{name} failed: {where}{type(error).__name__}: {one_line(error)}: the factory is called without arguments"
        ) from error


def called(what: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """The result of a person's ``function``. Raises EngineError in one line, with the place in their code, for whatever it raises."""
    try:
        return function(*args, **kwargs)
    except (EngineError, Cancelled):
        raise
    except (Exception, SystemExit) as error:
        raise failed(what, error) from error


def failed(what: str, error: BaseException) -> EngineError:
    """``what`` raised ``error``: the innermost place that is neither torch's nor this program's."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((_ENGINE, "<"))]
    own = [f for f in frames if "site-packages" not in f.filename] or frames
    place = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return EngineError(f"{what} failed{place}: {type(error).__name__}: {one_line(error)}")


class _Plain(io.TextIOBase):
    """A stream that passes text on without what could steer a terminal."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._stream is not None:
            self._stream.write(plain(text))
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """While somebody's code runs: what it prints goes to stderr, without control characters, also what it or a library of it writes to
    the descriptors of the terminal; ``os._exit`` and ``os.abort`` are errors as ``sys.exit`` is; and a process that it forked and left
    ends where it comes back."""
    owner = os.getpid()
    kept = os._exit, os.abort

    def leave(*given: object) -> NoReturn:
        if os.getpid() != owner:
            # A child's own end is its own affair.
            kept[0](given[0] if given and isinstance(given[0], int) else 1)
        raise SystemExit(f"it asked to end the program{f' with {given[0]}' if given else ''}")

    said = _Plain(sys.stderr)
    os._exit = os.abort = leave  # type: ignore[assignment]
    try:
        with _descriptors_contained(said), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield
    finally:
        os._exit, os.abort = kept
        if os.getpid() != owner:
            kept[0](0)


@contextlib.contextmanager
def _descriptors_contained(said: io.TextIOBase) -> Iterator[None]:
    """The process's own stdout and stderr are a file meanwhile, and ``said`` takes its text at the end. A crash is told at once, with
    the place in Python."""
    owner = os.getpid()
    with contextlib.ExitStack() as stack:
        kept: dict[int, int] = {}
        try:
            held = stack.enter_context(tempfile.TemporaryFile())
            for descriptor in (1, 2):
                kept[descriptor] = os.dup(descriptor)
                stack.callback(os.close, kept[descriptor])
            for descriptor in kept:
                os.dup2(held.fileno(), descriptor)
        except OSError:
            # A stream that is closed has nothing to keep clean.
            for descriptor, copy in kept.items():
                os.dup2(copy, descriptor)
            yield
            return
        crashes = not faulthandler.is_enabled()
        if crashes:
            faulthandler.enable(kept[2])
        try:
            yield
        finally:
            if crashes:
                faulthandler.disable()
            for stream in (sys.__stdout__, sys.__stderr__):
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    stream.flush()  # type: ignore[union-attr]
            if os.getpid() == owner:
                for descriptor, copy in kept.items():
                    os.dup2(copy, descriptor)
                held.seek(0)
                if text := held.read(_MOST_SAID).decode("utf-8", "replace"):
                    said.write(text)


def _from_file(path: Path, what: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{what} file {path} does not exist: give path/file.py:factory")
    spec = importlib.util.spec_from_file_location(f"qtui_{what}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Classes look their module up by name, and neighbours of the file are imported as it would from its own folder.
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        with contained():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise EngineError(f"{path} cannot be imported: {_place(error, path)}{type(error).__name__}: {one_line(error)}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _from_package(name: str) -> ModuleType:
    sys.path.insert(0, "")
    try:
        with contained():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"module {name!r} is not found ({one_line(error)}): give package.module:factory or path/file.py:factory"
        ) from error
    except (Exception, SystemExit) as error:
        raise EngineError(f"{name} cannot be imported: {type(error).__name__}: {one_line(error)}") from error
    finally:
        sys.path.remove("")


def _place(error: BaseException, path: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == path.resolve()]
    return f"line {lines[-1]}: " if lines else ""
