"""A tokenizer of Hugging Face's ``tokenizers`` as the metadata of a GGUF file: tokens, merges or scores, and how text is split.

llama.cpp has two kinds that byte-pair encodings fit: ``gpt2``, over bytes written as letters, with a splitting of text that it knows by
name, and ``llama``, over text with unknown letters as bytes, which merges by score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import EngineError

# Kinds of tokens: gguf.TokenType.
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# How text is split before it is merged, by the regular expressions of tokenizer.json: llama.cpp's names of them.
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS: Mapping[str, str] = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2"}


@dataclass(frozen=True)
class Vocabulary:
    """``model`` and ``split`` are llama.cpp's words. ``tokens`` are all of them in order, each with its kind and, of ``llama``, score.
    ``special`` has the ids of ``bos``, ``eos``, ``unk``, ``pad``; ``prefixed`` whether text begins with ``bos``, None where it is not
    said; ``space`` whether a space is put before text."""

    model: str
    split: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]
    special: Mapping[str, int]
    prefixed: bool | None
    space: bool
    template: str | None


def vocabulary(folder: Path | None, rows: int) -> Vocabulary:
    """The tokenizer of ``folder``, for a model with ``rows`` embeddings; rows without a token get one that is unused. Raises EngineError
    where there is none, and for one that GGUF cannot hold."""
    path = None if folder is None else folder / "tokenizer.json"
    if folder is None or path is None or not path.is_file():
        raise EngineError(
            "a GGUF file holds its tokenizer, and there is no tokenizer.json beside this model: add it, or export to safetensors"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        about = _json(folder / "tokenizer_config.json")
        return _vocabulary(content, about, _template(folder, about), rows)
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        raise EngineError(f"tokenizer.json of this model cannot be read ({type(error).__name__}): copy it again") from error


def _vocabulary(content: Mapping[str, Any], about: Mapping[str, Any], template: str | None, rows: int) -> Vocabulary:
    model = content["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "")
    if kind != "BPE":
        raise EngineError(f"GGUF export holds byte-pair tokenizers, and this is {kind or 'another'}: export to safetensors")
    added = {int(entry["id"]): entry for entry in content.get("added_tokens", ())}
    names = {int(number): token for token, number in model["vocab"].items()}
    names |= {number: entry["content"] for number, entry in added.items()}
    if not names or min(names) < 0 or max(names) >= rows:
        raise EngineError(f"the tokenizer has tokens up to {max(names, default=0)} and the model {rows} embeddings: export to safetensors")
    merges = tuple(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    split = _split(content, bool(model.get("byte_fallback")))
    tokens = tuple(names.get(number, f"[PAD{number}]") for number in range(rows))
    ranks = {merge.replace(" ", ""): rank for rank, merge in reversed(list(enumerate(merges)))}
    unknown = model.get("unk_token")
    kinds, scores = [], []
    for number, token in enumerate(tokens):
        kinds.append(_kind(number, token, added, names, unknown, split == ""))
        scores.append(-float(ranks.get(token, len(merges))))
    return Vocabulary(
        "gpt2" if split else "llama", split or "default", tokens, tuple(kinds), tuple(scores), merges if split else (),
        _special(tokens, about, unknown), _prefixed(content, about), _space(content), template,
    )  # fmt: skip


def _kind(
    number: int, token: str, added: Mapping[int, Mapping[str, Any]], names: Mapping[int, str], unknown: str | None, bytes_: bool
) -> int:
    if number not in names:
        return UNUSED
    if token == unknown:
        return UNKNOWN
    if number in added:
        return CONTROL if added[number].get("special") else USER
    if bytes_ and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return BYTE
    return NORMAL


def _split(content: Mapping[str, Any], fallback: bool) -> str:
    """The name of the splitting, empty for a vocabulary of text with bytes for what it lacks. Raises EngineError for one that llama.cpp
    has no name for: it would split, and so read, other tokens."""
    steps = _steps(content.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in steps]
    if fallback and all(step["type"] == "Metaspace" or _at_spaces(step) for step in steps):
        return ""
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        pattern = steps[0].get("pattern", {}).get("Regex", "")
        if pattern in SPLITS and steps[0].get("behavior") == "Isolated":
            return SPLITS[pattern]
    raise EngineError(
        f"llama.cpp has no name for how this tokenizer splits text ({', '.join(kinds) or 'not at all'}): export to safetensors"
    )


def _at_spaces(step: Mapping[str, Any]) -> bool:
    """Whether text is cut at plain spaces alone, of which Gemma's normalizer has left none."""
    return bool(step["type"] == "Split" and step.get("pattern", {}).get("String") == " ")


def _steps(part: Mapping[str, Any] | None, several: str) -> list[Mapping[str, Any]]:
    if not part:
        return []
    return list(part[several]) if part["type"] == "Sequence" else [part]


def _special(tokens: tuple[str, ...], about: Mapping[str, Any], unknown: str | None) -> dict[str, int]:
    numbers = {token: number for number, token in enumerate(tokens)}
    found = {}
    for name in ("bos", "eos", "unk", "pad"):
        entry = about.get(f"{name}_token", unknown if name == "unk" else None)
        token = entry.get("content") if isinstance(entry, Mapping) else entry
        if isinstance(token, str) and token in numbers:
            found[name] = numbers[token]
    return found


def _prefixed(content: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    """Whether the tokenizer itself puts ``bos`` before a text."""
    if isinstance(given := about.get("add_bos_token"), bool):
        return given
    for step in _steps(content.get("post_processor"), "processors"):
        first = (step.get("single") or [{}])[0]
        if step["type"] == "TemplateProcessing" and "SpecialToken" in first:
            return True
    return False


def _space(content: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text."""
    steps = [*_steps(content.get("normalizer"), "normalizers"), *_steps(content.get("pre_tokenizer"), "pretokenizers")]
    return any(
        step["type"] == "Prepend" or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        or (step["type"] == "ByteLevel" and bool(step.get("add_prefix_space")))
        for step in steps
    )  # fmt: skip


def _template(folder: Path, about: Mapping[str, Any]) -> str | None:
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    found = about.get("chat_template")
    return found if isinstance(found, str) else None


def _json(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if isinstance(found, dict) else {}
