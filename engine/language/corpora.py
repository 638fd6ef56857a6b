"""The texts that have a name of their own. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CorpusEntry:
    """A text by name. ``offline`` ones need no network."""

    name: str
    description: str
    licence: str
    offline: bool


ENTRIES: dict[str, CorpusEntry] = {
    entry.name: entry
    for entry in (
        CorpusEntry("python-docs", "the language reference and docstrings that CPython carries", "PSF-2.0", True),
        CorpusEntry("wikitext2", "WikiText-2, 2 M words of Wikipedia (4.7 MB download)", "CC-BY-SA-3.0", False),
    )
}
