"""One's own models: ``package.module:factory`` or ``path/file.py:factory``, a callable without arguments."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn, TextIO

from engine.errors import EngineError, UsageError, nearest, one_line
from engine.plain_text import plain

if TYPE_CHECKING:
    from torch import nn


def is_custom(name: str) -> bool:
    return ":" in name


def build(name: str) -> nn.Module:
    """Call the factory that ``name`` names. Raises UsageError when it cannot be found, EngineError when it fails."""
    import torch
    from torch import nn
    from torch.nn.parameter import is_lazy

    place, _, attribute = name.rpartition(":")
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UsageError(f"{place} has no callable {attribute!r}: {nearest(attribute, names) if names else 'it defines none'}")
    try:
        with _contained():
            model = factory()
    except (Exception, SystemExit) as error:
        raise EngineError(f"{name} failed: {type(error).__name__}: {one_line(error)}: the factory is called without arguments") from error
    if not isinstance(model, nn.Module):
        raise EngineError(f"{name} returned {type(model).__name__}, not an nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise EngineError(f"{name} returned a TorchScript module, which cannot be traced: return the nn.Module that it was made from")
    if lazy := next((path for path, p in model.named_parameters() if is_lazy(p)), None):
        layer = type(model.get_submodule(lazy.rpartition(".")[0])).__name__
        raise EngineError(
            f"{name} returned a model whose {lazy} has no shape yet ({layer} is a lazy layer): "
            "give the layer its sizes, or call the model on images once in the factory, before it returns it"
        )
    # A compiled model computes as the one that it was made from.
    original = getattr(model, "_orig_mod", model)
    return original if isinstance(original, nn.Module) else model


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
def _contained() -> Iterator[None]:
    """While somebody's code runs: what it prints goes to stderr, without control characters; ``os._exit`` and ``os.abort`` are
    errors as ``sys.exit`` is; and a process that it forked and left ends where it comes back."""
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
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield
    finally:
        os._exit, os.abort = kept
        if os.getpid() != owner:
            kept[0](0)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"model file {path} does not exist: give path/file.py:factory")
    spec = importlib.util.spec_from_file_location(f"qtui_model_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Classes look their module up by name, and neighbours of the file are imported as it would from its own folder.
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        with _contained():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise EngineError(f"{path} cannot be imported: {_place(error, path)}{type(error).__name__}: {one_line(error)}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _from_package(name: str) -> ModuleType:
    sys.path.insert(0, "")
    try:
        with _contained():
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
