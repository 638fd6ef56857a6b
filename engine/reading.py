"""Files that anybody may have written, edited or damaged: read whole, within limits, and only where they are regular files.

A FIFO blocks whoever opens it, a device may never end, and a deep or huge JSON value breaks code far from here: all of them end in
an OSError or a ValueError with a reason in one line. Torch-free.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Names the files of a model that is in several, as published ones are.
INDEX = "model.safetensors.index.json"
MB = 1_000_000
# Deeper than anything that is written here: a report has six levels.
DEEPEST = 40


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file. Raises OSError for one that is missing, not regular, or larger than ``limit`` bytes."""
    # Before it is opened: opening alone starts what some devices do.
    _check(os.stat(path), path, limit)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        # Again, for what was put in its place meanwhile.
        _check(os.fstat(handle), path, limit)
        content = file.read(limit + 1)
    if len(content) > limit:
        raise _too_large(path, limit)
    return content


def regular(path: Path) -> None:
    """Raises OSError for what is missing or no regular file: to be asked before a library opens it by its name."""
    _check(os.stat(path), path, None)


def read_json(path: Path, limit: int) -> Any:
    """The value of a JSON file in UTF-8. Raises OSError as ``read_bytes``, and ValueError for what is no JSON, is nested deeper than
    ``DEEPEST`` levels, or holds a number that is not finite or no float can hold."""
    return parse_json(read_bytes(path, limit))


def parse_json(content: bytes) -> Any:
    """``read_json`` for what has been read. Raises ValueError."""
    try:
        value = json.loads(content.decode("utf-8-sig"), parse_int=_integer, parse_float=_number, parse_constant=_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raises ValueError where lists and mappings are nested deeper than ``DEEPEST`` levels."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError("nested too deeply")


def _check(found: os.stat_result, path: Path, limit: int | None) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if limit is not None and found.st_size > limit:
        raise _too_large(path, limit)


def _too_large(path: Path, limit: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than {limit / MB:g} MB", str(path))


def _integer(text: str) -> int:
    # An integer that no float can hold fails wherever a figure is divided or shown.
    if len(text) > 300:
        raise ValueError("a number is too large")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def separator_of(header: str, among: Sequence[str]) -> str:
    """What separates the cells of a table, by its first line: the commonest of ``among`` outside of quotes."""
    bare = re.sub(r'"[^"]*"', "", header)
    return max(among, key=bare.count)


def told_separator(text: str) -> tuple[str | None, str]:
    """What a first line ``sep=;`` says, as spreadsheets write it, and the text with that line empty; None and the text without one."""
    told = re.match(r"\ufeff?\"?sep=([^\r\n\"])\"?(?=\r?\n|\r)", text, re.IGNORECASE)
    return (told.group(1), text[told.end() :]) if told else (None, text)


def shards_of_index(index: Path) -> list[Path]:
    """The files that ``index`` names, in order. Raises OSError, ValueError, LookupError or TypeError for what is no index, and ValueError
    for one that names files outside of its folder."""
    placed = read_json(index, 64 * MB)["weight_map"]
    names = sorted({str(name) for name in placed.values()})
    if not names or any(Path(name).name != name for name in names):
        raise ValueError("it names files outside of its folder, or none")
    return [index.parent / name for name in names]
