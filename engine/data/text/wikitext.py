"""WikiText-2 (Merity et al. 2016), raw: the archive that llama.cpp measures on, from the Hugging Face hub, pinned and checked."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from engine.data.text.corpora import ENTRIES
from engine.data.text.documents import Document, Split
from engine.errors import EngineError, one_line
from engine.models.hub import be_quiet, disk_trouble

REVISION = "927b3642933080f1b0e811e2f916e14c292992f9"
SHA256 = "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11"
_PARTS: dict[Split, str] = {"train": "wiki.train.raw", "validation": "wiki.valid.raw", "test": "wiki.test.raw"}


def wikitext2() -> dict[Split, Document]:
    """Its splits, each as one document. Raises EngineError without a network, and for an archive that is not the published one."""
    return read(_archive())


def read(archive: Path, sha256: str = SHA256) -> dict[Split, Document]:
    """The splits in an archive of that checksum, as the Hugging Face protocol joins them: lines without text are empty, and two
    line breaks follow each line."""
    try:
        content = archive.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise EngineError(f"{archive} is not the published WikiText-2: remove it, so that it is downloaded again")
        with zipfile.ZipFile(archive) as packed:
            members = {Path(name).name: name for name in packed.namelist()}
            return {split: Document(f"wikitext2 {split}", joined(packed.read(members[name]).decode())) for split, name in _PARTS.items()}
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise EngineError(f"{archive} cannot be read ({one_line(error, 80)}): remove it, so that it is downloaded again") from error


def joined(text: str) -> str:
    """The text of a split, from the lines of its file."""
    return "\n\n".join(line if line.strip() else "" for line in text.splitlines(keepends=True))


def _archive() -> Path:
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    archive = ENTRIES["wikitext2"].archive
    assert archive is not None
    repository, file = archive
    kept = try_to_load_from_cache(repository, file, revision=REVISION, repo_type="dataset")
    if isinstance(kept, str):
        return Path(kept)
    be_quiet()
    try:
        # Fails at once without a network, where a download tries again for half a minute.
        HfApi().dataset_info(repository, revision=REVISION)
        return Path(hf_hub_download(repository, file, repo_type="dataset", revision=REVISION))
    except Exception as error:
        if trouble := disk_trouble(error):
            raise EngineError(f"WikiText-2 cannot be kept ({trouble}): free some space or set HF_HOME elsewhere") from error
        # The client's own network layer is not part of its interface, and its errors are no OSErrors.
        raise EngineError(
            "WikiText-2 is not in the cache and the Hugging Face hub cannot be reached: connect to a network, use --data python-docs, "
            "or give a text file"
        ) from error
