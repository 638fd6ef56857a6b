"""A model's files from the Hugging Face hub: what a run needs and nothing else, from the cache where that holds all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors import EngineError, one_line
from engine.models.transformers_folder import look

_KEPT = (".json", ".txt", ".model")
_FOLDER = "or give a local folder of the model"


def fetch(repo: str, decoder: bool = True) -> Path:
    """The folder of ``repo`` (OWNER/MODEL) in Hugging Face's cache, downloaded where it is not whole; ``decoder`` as ``look`` takes it.

    Raises EngineError, in one line, without a network, for an id that does not exist, and for one that asks for terms to be
    accepted. Weights in safetensors are taken before PyTorch's own; code is never downloaded.
    """
    kept = _cached(repo, decoder)
    if kept is not None:
        return kept
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    be_quiet()
    try:
        names = [str(file.rfilename) for file in HfApi().model_info(repo).siblings or ()]
        return Path(snapshot_download(repo, allow_patterns=wanted(names)))
    except GatedRepoError as error:
        raise EngineError(f"{repo} is gated: accept its terms at hf.co/{repo} and log in with `hf auth login`, {_FOLDER}") from error
    except RepositoryNotFoundError as error:
        raise EngineError(f"{repo} is not on the Hugging Face hub, or is private: check the id, {_FOLDER}") from error
    except HfHubHTTPError as error:
        raise EngineError(f"{repo} cannot be downloaded ({one_line(error, 120)}): try again, {_FOLDER}") from error
    except Exception as error:
        # The client's own network layer is not part of its interface, and its errors are no OSErrors.
        raise _failed(repo, error) from error


def wanted(names: list[str]) -> list[str]:
    """Of a repository's files those at its top that a model needs, and how sentences are pooled."""
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors")] or [
        n for n in top if n.startswith("pytorch_model") and n.endswith(".bin")
    ]
    pooling = [name for name in names if name == "1_Pooling/config.json"]
    return [*(name for name in top if name.endswith(_KEPT)), *weights, *pooling]


def be_quiet() -> None:
    """What the hub's client would write on the terminal belongs to whoever shows the run: bars, and a line for each new try."""
    import huggingface_hub

    utils: Any = huggingface_hub.utils
    utils.disable_progress_bars()
    utils.logging.set_verbosity_error()


def _cached(repo: str, decoder: bool) -> Path | None:
    """The snapshot in the cache, None where it is not there or not whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        place = Path(snapshot_download(repo, local_files_only=True))
        found = look(place, decoder)
    except (EngineError, OSError, ValueError, HfHubHTTPError):
        return None
    return place if found.has_tokenizer else None


def disk_trouble(error: Exception) -> str | None:
    """What a disk said that cannot keep a download; None for trouble of another kind."""
    ours = isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError)
    return str(getattr(error, "strerror", None) or error) if ours else None


def _failed(repo: str, error: Exception) -> EngineError:
    if trouble := disk_trouble(error):
        return EngineError(f"{repo} cannot be kept ({trouble}): free some space or set HF_HOME elsewhere, {_FOLDER}")
    return EngineError(f"{repo} is not in the cache and the Hugging Face hub cannot be reached: connect to a network, {_FOLDER}")
