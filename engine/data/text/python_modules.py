"""Paragraphs of the documentation that CPython carries in its modules, labelled by the module that each is from."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.data.items import ItemData, SplitName
from engine.data.text.documents import docstrings_of, python_sources
from engine.data.text.labelled import Row, in_splits
from engine.data.text.prose import Novel, paragraphs
from engine.errors import EngineError

# The best documented parts of the library that every installation has.
MODULES = (
    "asyncio",
    "decimal",
    "email",
    "http",
    "importlib",
    "ipaddress",
    "logging",
    "multiprocessing",
    "typing",
    "unittest",
    "urllib",
    "xml",
)
_FILES = {"_pydecimal": "decimal"}
# Parts (0..1) of the paragraphs for test, and for validation.
_TEST, _VALIDATION = 0.15, 0.1


def load(part: Any) -> ItemData:
    """Twelve modules, some 3,000 paragraphs. Raises EngineError where the library comes without its source files."""
    rows: dict[SplitName, list[Row]] = {"train": [], "validation": [], "test": []}
    found = sorted(python_paragraphs(), key=lambda pair: _digest(pair[1]))
    for module, text in found:
        rows[_split(text)].append(Row((text,), module, module))
    if not all(rows.values()):
        raise EngineError("this Python comes without the sources of its library, which python-modules is made of: give data of your own")
    return in_splits("python-modules", rows, ())


def python_paragraphs(check: Callable[[], None] = lambda: None) -> Iterator[tuple[str, str]]:
    """Module and paragraph, each paragraph once; ``check`` is called before each file is read."""
    library, novel = Path(sysconfig.get_path("stdlib")), Novel()
    for path in list(python_sources())[1:]:
        first = path.relative_to(library).with_suffix("").parts[0]
        module = _FILES.get(first, first)
        if module in MODULES:
            check()
            for line in novel.keep(paragraphs(docstrings_of(path))):
                yield module, line


def _split(text: str) -> SplitName:
    """From the paragraph alone, so that it stays in its split from one version of Python to the next."""
    place = int(_digest(text)[:12], 16) / 16**12
    return "test" if place < _TEST else "validation" if place < _TEST + _VALIDATION else "train"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
