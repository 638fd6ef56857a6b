"""Sentences as words with a tag each: CoNLL files, and JSON lines or JSON with lists of tokens and tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data.items import ItemData, Items, SplitName
from engine.data.text.labelled import three
from engine.data.text.rows import Table, content_of, named, read_table
from engine.data.text.textfiles import decoded, lines_of
from engine.errors import EngineError
from engine.plain_text import one_line

_WORDS = ("tokens", "words", "sentence", "text")
_TAGS = ("tags", "ner_tags", "labels", "pos_tags", "upos", "xpos", "ner", "pos", "chunk_tags")
_TABLES = (".jsonl", ".ndjson", ".json", ".parquet")
_SPLITS: Mapping[SplitName, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class Sentence:
    """Words, the tag of each as it was written, and where the sentence begins."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    where: str


@dataclass(frozen=True, eq=False)
class Sentences:
    """A split: inputs are the words of each sentence, targets its tags."""

    rows: tuple[Sentence, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, places: Sequence[int]) -> Items:
        some = [self.rows[i] for i in places]
        return Items([row.words for row in some], [row.tags for row in some])


def load(place: Path, part: Any) -> ItemData:
    """Raises EngineError, in one line with the file and the line, for what cannot be read."""
    files: dict[SplitName, Path] = _files(place) if place.is_dir() else {"train": place}
    return in_splits(str(place), {split: _sentences(path) for split, path in files.items()}, [])


def in_splits(name: str, rows: Mapping[SplitName, Sequence[Sentence]], notes: Sequence[str]) -> ItemData:
    """Sentences as data in three splits."""
    found, notes = three(name, rows, notes)
    labels = tuple(sorted({tag for part in found.values() for sentence in part for tag in sentence.tags}))
    if len(labels) < 2:
        raise EngineError(f"{name} has {'one tag' if labels else 'no tags'}: a classification tells two or more apart")
    splits = {split: Sentences(tuple(part)) for split, part in found.items()}
    return ItemData(name, splits["train"], splits["validation"], splits["test"], len(labels), labels, notes=tuple(notes))


def _files(folder: Path) -> dict[SplitName, Path]:
    found: dict[SplitName, Path] = {}
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    for split, words in _SPLITS.items():
        fitting = [path for path in files if path.stem.lower().startswith(words)]
        if len(fitting) > 1:
            raise EngineError(f"{folder} holds {len(fitting)} files for {split}, {fitting[0].name} and {fitting[1].name}: keep one")
        if fitting:
            found[split] = fitting[0]
    if not found:
        raise EngineError(f"{folder} holds no file named train, validation or test: give a file of words and tags")
    return found


def _sentences(path: Path) -> list[Sentence]:
    found = _of_table(read_table(path)) if path.suffix.lower() in _TABLES else _of_lines(path)
    if not found:
        raise EngineError(f"{path} has no sentences: give a file with a word and its tag a line, and an empty line between sentences")
    return found


def _of_lines(path: Path) -> list[Sentence]:
    """The first column is the word and the last the tag, of CoNLL-U the second and the fourth; comments are left out."""
    found: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    begin = 1
    universal = path.suffix.lower() in (".conllu", ".conllup")
    every = lines_of(decoded(path, content_of(path)))
    comments = _comments(every, universal)
    for number, line in enumerate([*every, ""], 1):
        bare = line.strip()
        if not bare or bare.startswith("-DOCSTART-"):
            if words:
                found.append(Sentence(tuple(words), tuple(tags), f"{path}, line {begin:,}"))
            words, tags = [], []
            continue
        if number in comments:
            continue
        cells = _cells(bare)
        if len(cells) < (4 if universal else 2):
            raise EngineError(f"{path}, line {number:,} has {len(cells)} column{'s' * (len(cells) > 1)}: write a word and its tag a line")
        if not words:
            begin = number
        if universal and not cells[0].isdigit():
            continue
        words.append(cells[1] if universal else cells[0])
        tags.append(cells[3] if universal else cells[-1])
    return found


def _cells(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else line.split()


def _comments(lines: Sequence[str], universal: bool) -> set[int]:
    """The numbers of the lines that are comments: those that begin with ``#`` and are no word ``#`` with its tag, in as many columns as
    the others and with a tag that they have."""
    begun = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip().startswith("#" if universal else "# ")}
    if universal or not begun:
        return set(begun)
    others = [_cells(line.strip()) for number, line in enumerate(lines, 1) if number not in begun and line.strip()]
    widths, tags = {len(cells) for cells in others}, {cells[-1] for cells in others}
    return {number for number, line in begun.items() if len(_cells(line)) not in widths or _cells(line)[-1] not in tags}


def _of_table(table: Table) -> list[Sentence]:
    words, tags = named(table.columns, _WORDS), named(table.columns, _TAGS)
    if words is None or tags is None:
        raise EngineError(f"{table.path} has the columns {', '.join(map(ascii, table.columns[:5]))}: name them tokens and tags")
    found = []
    for i, (some, their) in enumerate(zip(table.column(words), table.column(tags), strict=True)):
        if not isinstance(some, list) or not isinstance(their, list) or not all(isinstance(word, str) for word in some):
            raise EngineError(f"{table.where(i)}: tokens and tags must be lists, of words and of their tags")
        if len(some) != len(their):
            raise EngineError(
                f"{table.where(i)} has {len(some)} tokens and {len(their)} tags ({one_line(' '.join(some), 40)}): give a tag each"
            )
        if some:
            found.append(Sentence(tuple(some), tuple(str(tag) for tag in their), table.where(i)))
    return found
