"""The texts that have a name of their own. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from engine.models.language_registry import hub_cache


@dataclass(frozen=True)
class CorpusEntry:
    """A text by name. ``archive`` is (repository, file) of a data set on the Hugging Face hub; None for a text that needs no network."""

    name: str
    description: str
    licence: str
    archive: tuple[str, str] | None = None

    @property
    def where(self) -> str:
        """``offline``, ``cached`` or ``to download``."""
        if self.archive is None:
            return "offline"
        repository, file = self.archive
        kept = (hub_cache() / f"datasets--{repository.replace('/', '--')}" / "snapshots").glob(f"*/{file}")
        return "cached" if any(kept) else "to download"


ENTRIES: dict[str, CorpusEntry] = {
    entry.name: entry
    for entry in (
        CorpusEntry("python-docs", "the language reference and docstrings that CPython carries, for language models", "PSF-2.0"),
        CorpusEntry(
            "wikitext2", "WikiText-2, 2 M words of Wikipedia, for language models (4.7 MB download)", "CC-BY-SA-3.0",
            ("ggml-org/ci", "wikitext-2-raw-v1.zip"),
        ),
    )
}  # fmt: skip
