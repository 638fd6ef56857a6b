"""A person's own text: a file, or a folder of files, in UTF-8."""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.data.text.documents import Document, Split
from engine.errors import EngineError

SUFFIXES = (".txt", ".md", ".rst", ".text", ".raw", ".tokens")
_NAMES: Mapping[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
HELD_OUT = 0.1
_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def read_file(path: Path) -> Document:
    """Raises EngineError, in one line, for a file that is empty, binary, or not in UTF-8, and for a device or a pipe."""
    if path.exists() and not path.is_file() and not path.is_dir():
        # It may have no end, and a run that is resumed reads its text again.
        raise EngineError(f"text {path} is a device or a pipe: write what it gives to a file, and give that")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EngineError(f"text {path} cannot be read ({error.strerror or error}): check the path and its permissions") from error
    return Document(path.name, decoded(path, content).replace("\r\n", "\n"))


def decoded(path: Path, content: bytes) -> str:
    """The text of a file's content. Raises EngineError, in one line, where it is empty, binary, or not in UTF-8."""
    if not content.strip():
        raise EngineError(f"text {path} is empty: give a file with text in it")
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            raise EngineError(f"text {path} is in {encoding}: convert it, for example with iconv -f {encoding} -t utf-8")
    # More control characters than a text has, whatever its encoding.
    controls = sum(content[:65536].count(code) for code in (*range(9), *range(14, 27), *range(28, 32)))
    if controls > 0.001 * min(len(content), 65536):
        raise EngineError(f"{path} is not text, it holds binary data: give a text file in UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"byte 0x{content[error.start]:02x} at {error.start:,}{_line(content, error.start)}"
        raise EngineError(f"text {path} is not UTF-8 ({place}): convert it, for example with iconv -t utf-8") from error


def lines_of(text: str) -> list[str]:
    """The lines of a text by their line feeds and carriage returns. ``str.splitlines`` ends lines at characters too that text holds within
    a line, such as U+2028 and U+0085."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _line(content: bytes, at: int) -> str:
    """The line of a byte, where there is more than one."""
    line = content.count(b"\n", 0, at) + 1
    return f", line {line:,}" if line > 1 else ""


def read_folder(folder: Path) -> tuple[Document, ...]:
    """The text files below ``folder``, hidden ones left out, sorted, each content once. Raises EngineError as ``read_file`` does and
    for a folder without any."""
    inside = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    names = sorted(str(path) for path in inside if not any(part.startswith(".") for part in path.parts))
    if not names:
        raise EngineError(f"{folder} holds no text files ({', '.join(SUFFIXES)}): give a text file, or a folder of them")
    found: dict[str, Document] = {}
    for name in names:
        text = read_file(folder / name).text
        found.setdefault(hashlib.sha256(text.encode()).hexdigest(), Document(name, text))
    return tuple(found.values())


def divide(documents: Sequence[Document]) -> dict[Split, list[Document]] | None:
    """Whole documents to splits: by their names where there are ``train`` and ``test`` among them, else so that about a tenth of the
    text each is for test and for validation, in an order that depends on nothing but the names. None for fewer than three
    documents, or where one is so long that nothing would be left to train on."""
    named: dict[Split, list[Document]] = {
        split: [doc for doc in documents if _is_named(doc.name, words)] for split, words in _NAMES.items()
    }
    if all(named.values()):
        return named
    drawn = sorted(documents, key=lambda doc: hashlib.sha256(doc.name.encode()).hexdigest())
    total = sum(len(doc.text) for doc in documents)
    parts: dict[Split, list[Document]] = {"train": [], "validation": [], "test": []}
    for doc in drawn:
        short = (split for split in (parts["test"], parts["validation"]) if sum(len(d.text) for d in split) < HELD_OUT * total)
        next(short, parts["train"]).append(doc)
    if sum(len(doc.text) for doc in parts["train"]) < total / 2:
        return None
    return {split: sorted(docs, key=lambda doc: doc.name) for split, docs in parts.items()}


def _is_named(name: str, words: Sequence[str]) -> bool:
    return any(part in words for part in re.split(r"[^a-z]+", Path(name).name.lower()))
