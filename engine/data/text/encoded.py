"""Text as token ids in splits: by name, from a file or a folder; and sequences of ids. Encoded once, then kept."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.data.text import documents as docs
from engine.data.text import prose, sequences, tokens, wikitext
from engine.data.text.corpora import ENTRIES
from engine.data.text.documents import SPLITS, Document, Split
from engine.data.text.textfiles import HELD_OUT, divide, read_file, read_folder
from engine.errors import EngineError, UsageError, nearest
from engine.events.cancellation import StopToken
from engine.models.transformers_load import LanguageModel
from engine.paths import cache_dir, write_atomic


@dataclass(frozen=True)
class TextData:
    """One stream of token ids (tokens,), int64, for each split. ``documents`` counts those of each split; 0 where one text was cut."""

    name: str
    streams: Mapping[Split, Tensor]
    documents: Mapping[Split, int]

    def windows(self, split: Split, context: int, count: int, seed: int = 0) -> Tensor:
        """``count`` windows (count, context) for calibration, drawn without overlap, fewer where the split has no more."""
        stream = self.streams[split]
        whole = len(stream) // context
        drawn = torch.randperm(whole, generator=torch.Generator().manual_seed(seed))[:count]
        return stream[: whole * context].view(whole, context)[drawn]


@dataclass(frozen=True)
class SequenceData:
    """Sequences of token ids, 1-D and int64, for each split."""

    name: str
    sequences: Mapping[Split, tuple[Tensor, ...]]


def load_text(name: str, model: LanguageModel, stop: StopToken, window: int | None = None) -> TextData | SequenceData:
    """The text of that ``name``: of the registry, a text file, a folder of text files, or a ``.json`` file of token ids.

    Train, validation and test are told by document where there are documents; a single text is cut in three. Raises UsageError
    for a name that is nothing of that; EngineError, in one line, for text that cannot be read or where a split is shorter than a
    ``window`` (tokens; the model's by default), and for a hub that cannot be reached; Cancelled on stop.
    """
    window = window or model.window
    if name not in ENTRIES and name.lower().endswith(".json"):
        rows = int(model.model.get_input_embeddings().weight.shape[0])
        found = sequences.read_sequences(Path(name).expanduser(), rows, model.context)
        return SequenceData(name, sequences.halves(found))
    if model.tokenizer is None:
        raise EngineError(f"{model.name} has no tokenizer and cannot read {name}: give a .json file of token ids")
    data = _python_docs(model, stop) if name == "python-docs" else _other(name, model, stop, window)
    _check_ids(data, model)
    check_length(data, window)
    return data


def _check_ids(data: TextData, model: LanguageModel) -> None:
    """Raises EngineError where the text has a token that the embedding has no row for."""
    rows = int(model.model.get_input_embeddings().weight.shape[0])
    largest = max((int(stream.max()) for stream in data.streams.values() if len(stream)), default=-1)
    if largest >= rows:
        word = model.tokenizer.convert_ids_to_tokens(largest)
        raise EngineError(
            f"{data.name} has the token {largest:,} ({ascii(word)[:40]}) and the embedding of {model.name} {rows:,} rows: take the "
            "tokenizer that the model was trained with, or leave that token out of the text"
        )


def check_length(data: TextData, window: int) -> None:
    """Raises EngineError where a split is shorter than one window of ``window`` tokens."""
    total = sum(len(stream) for stream in data.streams.values())
    advice = f"give a longer text, {3 * window:,} tokens or more, or a smaller data.context in a recipe"
    if total < window:
        raise EngineError(f"the text {data.name} has {total:,} tokens, fewer than a window of {window:,}: {advice}")
    for split, stream in data.streams.items():
        if len(stream) < window:
            raise EngineError(f"the {split} part of {data.name} has {len(stream):,} tokens, fewer than a window of {window:,}: {advice}")


def _python_docs(model: LanguageModel, stop: StopToken) -> TextData:
    """From the cache where the sources, the tokenizer and the rules are the same."""
    stats = [(str(path), at.st_size, at.st_mtime_ns) for path in docs.python_sources() if (at := path.stat())]
    rules = [Path(module.__file__ or "").read_text(encoding="utf-8") for module in (docs, prose, tokens)]
    told = f"{platform.python_version()} {stats} {rules} {tokens.fingerprint(model.tokenizer)}"
    kept = cache_dir() / "text" / f"python-docs-{hashlib.sha256(told.encode()).hexdigest()[:16]}.safetensors"
    data = _read(kept)
    if data is None:
        found = docs.python_docs(stop.check)
        parts = {split: [doc for doc in found if docs.split_of(doc.name) == split] for split in SPLITS}
        data = _encoded("python-docs", parts, model, stop)
        _keep(kept, data)
    return data


def _other(name: str, model: LanguageModel, stop: StopToken, window: int) -> TextData:
    place = Path(name).expanduser()
    if name == "wikitext2":
        parts = {split: [doc] for split, doc in wikitext.wikitext2().items()}
        return _encoded(name, parts, model, stop, ends=False)
    if place.is_dir():
        found = read_folder(place)
        divided = divide(found)
        return _encoded(name, divided, model, stop) if divided else _cut(name, found, model, stop, window)
    if place.exists():
        return _cut(name, [read_file(place)], model, stop, window)
    if "/" in name or "." in name:
        raise EngineError(f"text {name} does not exist: check the path given to --data")
    raise UsageError(f"unknown text {name!r}: {nearest(name, list(ENTRIES))}; or give a text file or a folder of text files")


def _encoded(name: str, parts: Mapping[Split, Sequence[Document]], model: LanguageModel, stop: StopToken, ends: bool = True) -> TextData:
    streams = {split: tokens.encode(model.tokenizer, parts[split], ends=ends, check=stop.check) for split in SPLITS}
    return TextData(name, streams, {split: len(parts[split]) for split in SPLITS})


def _cut(name: str, found: Sequence[Document], model: LanguageModel, stop: StopToken, window: int) -> TextData:
    """One text in three: its last tenths, a window at least, are for validation and for test."""
    stream = tokens.encode(model.tokenizer, found, ends=len(found) > 1, check=stop.check)
    held = min(max(int(HELD_OUT * len(stream)), window), len(stream) // 3)
    streams = torch.split(stream, [len(stream) - 2 * held, held, held])
    return TextData(name, dict(zip(SPLITS, streams, strict=True)), dict.fromkeys(SPLITS, 0))


def _read(path: Path) -> TextData | None:
    """None for what is not there or not whole: it is made anew."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
        counts = {split: int(found[f"{split}.documents"]) for split in SPLITS}
        return TextData("python-docs", {split: found[split].long() for split in SPLITS}, counts)
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _keep(path: Path, data: TextData) -> None:
    from safetensors.torch import save

    kept: dict[str, Tensor] = {split: stream.int() for split, stream in data.streams.items()}
    kept |= {f"{split}.documents": torch.tensor(count) for split, count in data.documents.items()}
    # What cannot be kept is encoded again by the next run.
    try:
        write_atomic(path, save(kept))
    except OSError:
        return
