"""The language models that have a name of their own. Torch-free."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.models.registry import ENTRIES as NETWORKS
from engine.models.registry import WEIGHTS

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class LanguageEntry:
    """``params`` counts each tied matrix once; ``context`` is in tokens. ``folder`` is the model's name below the package's weights,
    ``hub`` its Hugging Face id: one of them is given. ``weight_file`` is what is downloaded, ``download`` its bytes."""

    name: str
    description: str
    params: int
    context: int
    folder: str = ""
    hub: str = ""
    weight_file: str = "model.safetensors"
    download: int = 0

    @property
    def place(self) -> Path | None:
        """The model's folder in the package or in Hugging Face's cache, or None."""
        if self.folder:
            return found if ((found := WEIGHTS / self.folder) / self.weight_file).is_file() else None
        snapshots = hub_cache() / f"models--{self.hub.replace('/', '--')}" / "snapshots"
        return next((place for place in sorted(snapshots.glob("*")) if (place / self.weight_file).is_file()), None)

    @property
    def where(self) -> str:
        """``package``, ``to train`` where the package does not hold what it names, ``cached`` or ``to download``."""
        if self.folder:
            return "package" if self.place else "to train"
        return "cached" if self.place else "to download"

    def record(self) -> Mapping[str, Any]:
        """What was written when the model was trained here; empty for one that was not."""
        try:
            found = json.loads((WEIGHTS / self.folder / "record.json").read_text(encoding="utf-8")) if self.folder else {}
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def perplexity(self) -> Mapping[str, float]:
        """The recorded perplexity on a test split by the text's name."""
        record = self.record()
        value = record.get("test_perplexity")
        return {str(record.get("data")): float(value)} if isinstance(value, int | float) else {}


def hub_cache() -> Path:
    """The folder to which Hugging Face's client downloads models; it may not exist."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(given or os.path.join(home, "hub")).expanduser()


ENTRIES: dict[str, LanguageEntry] = {
    entry.name: entry
    for entry in (
        LanguageEntry("gpt2-mini", "a small GPT-2, trained on Python's documentation", 3_814_912, 512, folder="gpt2-mini"),
        LanguageEntry(
            "gpt2", "GPT-2 of 124 M parameters, openai-community/gpt2", 124_439_808, 1024,
            hub="openai-community/gpt2", download=548_105_171,
        ),
    )
}  # fmt: skip


def is_language(name: str) -> bool:
    """Whether a model's name stands for a language model: one of the registry, a folder with a ``config.json``, a GGUF file, a Hugging
    Face id, or the address of one. A network's name wins over a folder that is called so."""
    if name in ENTRIES or "://" in name:
        return True
    if name in NETWORKS or ":" in name or name.endswith(".py"):
        return False
    place = Path(name).expanduser()
    return is_gguf(name) or (place / "config.json").is_file() or (not place.exists() and is_hub_id(name))


def is_gguf(name: str) -> bool:
    """Whether ``name`` is that of a GGUF file."""
    return name.lower().endswith(".gguf") and not Path(name).expanduser().is_dir()


def is_place(name: str) -> bool:
    """Whether ``name`` is the folder or the file of a language model."""
    return is_language(name) and name not in ENTRIES and Path(name).expanduser().exists()


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form OWNER/MODEL."""
    return _HUB_ID.fullmatch(name) is not None
