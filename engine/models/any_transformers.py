"""Any model of transformers from a folder or the Hugging Face hub, by the class that its ``config.json`` names: a run without labels
needs no more of it than that it takes the inputs. Nothing that it brings is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from engine.errors import EngineError
from engine.models.language_registry import is_hub_id
from engine.models.registry import ENTRIES
from engine.models.text_models import read_model
from engine.models.text_registry import ENTRIES as TEXTS
from engine.models.transform import Transform
from engine.models.transformers_folder import look
from engine.models.transformers_load import quiet
from engine.models.vision_models import place_of, transform_of
from engine.reading import MB, read_json


def is_transformers(name: str) -> bool:
    """Whether ``name`` stands for a folder of transformers, or for a model by its Hugging Face id."""
    if ":" in name or name in ENTRIES or name in TEXTS:
        return False
    place = Path(name).expanduser()
    return (place / "config.json").is_file() if place.exists() else is_hub_id(name)


def load(name: str) -> nn.Module:
    """The model, in float32 and eval mode. Raises EngineError, in one line, for a folder that is incomplete, damaged or quantized
    already, and for a class that transformers does not have."""
    import transformers

    found = look(place_of(name), decoder=False)
    named = found.config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else "AutoModel"
    if not _is_model(getattr(transformers, architecture, None)):
        raise EngineError(f"{name} is a {architecture}, which transformers {transformers.__version__} does not have: install a newer one")
    with quiet():
        model: nn.Module = read_model(found, architecture, "fidelity")
    config: Any = model.config
    # What a cache holds is no output of one call.
    if getattr(config, "use_cache", False):
        config.use_cache = False
    return model


def _is_model(found: Any) -> bool:
    return isinstance(found, type) and callable(getattr(found, "from_pretrained", None))


def preprocessing(name: str) -> Transform | None:
    """What the model expects of photographs; None of one whose folder does not say."""
    try:
        found = read_json(place_of(name) / "preprocessor_config.json", MB)
    except (OSError, ValueError):
        return None
    return transform_of(name) if isinstance(found, dict) and "image_mean" in found else None
