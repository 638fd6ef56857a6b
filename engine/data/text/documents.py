"""Documents of text, before any tokenizer: the documentation that CPython carries. Nothing is imported or executed to read it."""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from engine.data.text.prose import Novel, paragraphs

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
# Not on every installation, or no prose.
_SKIPPED = ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "pydoc_data", "_bundled", "lib-dynload")


@dataclass(frozen=True)
class Document:
    """``name`` is unique in its collection; paragraphs of ``text`` end with a line break."""

    name: str
    text: str


def split_of(name: str, held_out: float = 0.08) -> Split:
    """The split of a document, from its name alone: what documents there are besides changes nothing, so that a module stays in
    its split from one version of Python to the next. ``held_out`` is the part (0..1) for validation, and again for test."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48
    return "test" if place < held_out else "validation" if place < 2 * held_out else "train"


def python_docs(check: Callable[[], None] = lambda: None) -> tuple[Document, ...]:
    """The language reference of ``pydoc`` and the docstrings of the standard library, as prose: a topic or a module is a document.

    Sorted and without repetition, so the same for the same Python; a longer topic holds its place against those that repeat it.
    ``check`` is called before each file is read.
    """
    found = chain(sorted(_topics(), key=lambda d: (-len(d.text), d.name)), _modules())
    novel = Novel()
    kept = []
    for document in found:
        check()
        text = "".join(f"{line}\n" for line in novel.keep(paragraphs(document.text)))
        if text:
            kept.append(Document(document.name, text))
    return tuple(sorted(kept, key=lambda d: d.name))


def python_sources() -> Iterator[Path]:
    """The source files that ``python_docs`` reads, sorted."""
    library = Path(sysconfig.get_path("stdlib"))
    yield library / "pydoc_data" / "topics.py"
    for folder, inner, files in os.walk(library):
        inner[:] = sorted(name for name in inner if name not in _SKIPPED and not name.startswith("config-"))
        yield from (Path(folder) / name for name in sorted(files) if name.endswith(".py") and not name.startswith("_sysconfigdata"))


def _topics() -> Iterator[Document]:
    tree = _parse(next(python_sources()))
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                texts = [part.value for part in (key, value) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
                if len(texts) == 2:
                    yield Document(f"topic {texts[0]}", texts[1])


def _modules() -> Iterator[Document]:
    library = Path(sysconfig.get_path("stdlib"))
    for path in list(python_sources())[1:]:
        if text := docstrings_of(path):
            name = ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
            yield Document(name, text)


def docstrings_of(path: Path) -> str:
    """All docstrings of a source file, an empty line between them; empty where this Python does not read it."""
    tree = _parse(path)
    return "" if tree is None else "\n\n".join(_docstrings(tree))


def _parse(path: Path) -> ast.Module | None:
    """None for a file that this Python does not read as source."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterable[str]:
    text = ast.get_docstring(node)
    if text:
        yield text
    for inner in node.body:
        if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(inner)
