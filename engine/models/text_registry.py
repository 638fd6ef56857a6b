"""The models on text, other than decoders, that have a name of their own; and what a folder's ``config.json`` says it is for.
Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.models.language_registry import hub_cache, is_hub_id
from engine.models.registry import ENTRIES as NETWORKS
from engine.models.registry import WEIGHTS
from engine.reading import MB, read_json

# The last part of an architecture's name, and the task that such a model is for.
_HEADS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "classification",
    "ForMaskedLM": "embeddings",
    "ForPreTraining": "embeddings",
    "EncoderModel": "embeddings",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
}
# Decoders after an encoder of text; speech and images have other inputs.
_SEQ2SEQ = ("t5", "mt5", "umt5", "longt5", "bart", "mbart", "marian", "pegasus", "pegasus_x", "blenderbot", "blenderbot-small", "led",
            "m2m_100", "plbart", "prophetnet", "switch_transformers", "bigbird_pegasus", "fsmt")  # fmt: skip


@dataclass(frozen=True)
class TextEntry:
    """A model by name: ``folder`` is below the package's weights, ``task`` what it was trained for on ``data``, ``others`` are further
    tasks that it takes."""

    name: str
    description: str
    folder: str
    task: str
    data: str
    others: tuple[str, ...] = ()

    @property
    def weights(self) -> Path:
        """The file of its weights in the package; it may not be there."""
        return WEIGHTS / self.folder / "model.safetensors"

    def recorded(self, metric: str) -> float | None:
        """The ``metric`` on the test split of ``data``, as it was written when the model was trained; None where there is no record."""
        try:
            return float(read_json(WEIGHTS / self.folder / "record.json", MB)[f"test_{metric}"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def place(self) -> Path | None:
        """The model's folder in the package, None where it is not there."""
        return self.weights.parent if self.weights.is_file() else None


ENTRIES: dict[str, TextEntry] = {
    entry.name: entry
    for entry in (
        TextEntry(
            "bert-mini", "a small BERT, which tells the modules of Python by their documentation", "bert-mini", "text-classification",
            "python-modules", ("embeddings",),
        ),
        TextEntry("t5-mini", "a small T5, which reverses digits in words", "t5-mini", "seq2seq", "reversed-digits"),
    )
}  # fmt: skip


def task_of_folder(name: str) -> str | None:
    """The task of the model in a folder, or of one by its Hugging Face id that is in the cache, from its ``config.json`` alone; None
    where that does not tell."""
    if name in NETWORKS or ":" in name:
        return None
    place = Path(name).expanduser()
    if not (place / "config.json").is_file() and is_hub_id(name) and not place.exists():
        snapshots = hub_cache() / f"models--{name.replace('/', '--')}" / "snapshots"
        place = next((found for found in sorted(snapshots.glob("*")) if (found / "config.json").is_file()), place)
    try:
        config = read_json(place / "config.json", MB)
    except (OSError, ValueError):
        return None
    return _task(config) if isinstance(config, dict) else None


def _task(config: dict[str, Any]) -> str | None:
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    kind = str(config.get("model_type", ""))
    if architecture.endswith(("ForConditionalGeneration", "MTModel", "ForSeq2SeqLM")):
        return "seq2seq" if kind in _SEQ2SEQ else None
    found = next((task for ending, task in _HEADS.items() if architecture.endswith(ending)), None)
    if found == "embeddings" and kind in _SEQ2SEQ:
        return None
    # A bare encoder, as sentence-transformers keeps them.
    return found or ("embeddings" if architecture.endswith("Model") and kind in ENCODERS else None)


ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "albert", "electra", "mpnet", "deberta", "deberta-v2",
            "modernbert", "nomic_bert", "xlm-roberta-xl", "ernie", "roformer", "convbert", "mobilebert", "squeezebert")  # fmt: skip
