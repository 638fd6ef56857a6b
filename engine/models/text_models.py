"""Models on text other than decoders: from the package, a local folder, or the Hugging Face hub. Nothing that they bring is executed."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engine.errors import EngineError, UsageError, nearest
from engine.models import hub
from engine.models.language_registry import is_hub_id
from engine.models.soundness import check_floats, check_not_zero, unloadable
from engine.models.text_registry import ENTRIES
from engine.models.transformers_folder import AGAIN, Folder, look
from engine.models.transformers_load import check_vocabulary, context_of, quiet, tokenizer_of
from engine.reading import MB, read_json

Head = Literal["sequence", "token", "encoder", "seq2seq"]
_AUTO: Mapping[Head, str] = {
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "encoder": "AutoModel",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
# Tokens of a text that are read at most where the recipe says nothing: what encoders were trained on.
LONGEST = 512
# Families in which every token attends to every other: one mask serves all layers.
_WIDE = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "albert", "distilbert", "mpnet", "ernie")
# Less than any attention score by so much that its part of the softmax is 0.
_HIDDEN = 1e9
# Families that take positions 0, 1, 2 … from a table as long as their context, and may be given them instead.
_COUNTED = ("bert", "electra", "albert", "distilbert", "deberta", "convbert", "ernie", "mobilebert", "squeezebert")


class WithMask(nn.Module):
    """``model`` on token ids and their mask alone, in a form whose length is free: what else it takes follows from these."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        taken = inspect.signature(model.forward).parameters
        self._types = "token_type_ids" in taken and int(getattr(model.config, "type_vocab_size", 0) or 0) > 0
        self._positions = "position_ids" in taken and model.config.model_type in _COUNTED
        self._wide = False
        self._wide = model.config.model_type in _WIDE and self._takes_wide()

    def _takes_wide(self) -> bool:
        """Whether ``model`` takes numbers to add to the attention scores, (N, 1, 1, T), for a mask of the same meaning: what it makes of
        a mask of its own is code of many branches."""
        ids = torch.arange(1, 7).repeat(2, 1)
        mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
        was = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                self._wide = False
                plain = self.called(ids, mask, None)[0]
                self._wide = True
                wide = self.called(ids, mask, None)[0]
            kept = mask.bool() if plain.dim() == 3 else slice(None)
            return bool(torch.allclose(plain[kept], wide[kept], rtol=1e-4, atol=1e-5))
        except Exception:
            return False
        finally:
            self.model.train(was)

    def called(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Any:
        """What ``model`` returns."""
        given: dict[str, Tensor] = {}
        if self._types:
            given["token_type_ids"] = input_ids * 0 if token_type_ids is None else token_type_ids
        if self._positions:
            given["position_ids"] = torch.cumsum(input_ids * 0 + 1, 1) - 1
        mask = (attention_mask[:, None, None, :].to(torch.float32) - 1) * _HIDDEN if self._wide else attention_mask
        return self.model(input_ids=input_ids, attention_mask=mask, **given)


class Logits(WithMask):
    """Token ids and mask (N, T) to the logits of a head: (N, labels), or (N, T, labels) of one for each token."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        logits: Tensor = self.called(input_ids, attention_mask, token_type_ids).logits
        return logits


@dataclass(frozen=True)
class TextModel:
    """``model`` is transformers' own, in float32 and eval mode; ``tokenizer`` is one of transformers. ``context`` is how many tokens
    are read at most, ``labels`` are the names of what a head tells apart; ``source`` is ``package``, ``hub`` or ``folder``, and ``path``
    the folder it was read from; ``notes`` are sentences that a person is warned with."""

    name: str
    model: Any
    tokenizer: Any
    context: int
    labels: tuple[str, ...]
    source: str
    path: Path
    notes: tuple[str, ...] = ()


def load_text_model(name: str, head: Head, task: str) -> TextModel:
    """The model of that ``name``, with the ``head`` that ``task`` needs.

    Raises UsageError for a name that is none; EngineError, in one line, for a hub that cannot be reached, and for a folder that is
    incomplete, damaged, quantized already, without that head, or whose tokenizer does not fit."""
    source, place = _place(name, task)
    found = look(place, decoder=False)
    if not found.has_tokenizer:
        raise EngineError(f"{place} has no tokenizer (tokenizer.json, or vocab.txt): add the files that its tokenizer was saved in")
    with quiet():
        model = read_model(found, _AUTO[head], task)
        tokenizer = tokenizer_of(found)
    if tokenizer.pad_token_id is None:
        raise EngineError(f"the tokenizer in {place} has no padding token: texts of unlike length cannot be read together; add one")
    labels = model.config.id2label if head in ("sequence", "token") else {}
    names = tuple(str(labels[key]) for key in sorted(labels))
    context = min(_positions(model.config), int(getattr(tokenizer, "model_max_length", LONGEST) or LONGEST))
    return TextModel(name, model, tokenizer, context, names, source, place, check_vocabulary(tokenizer, model, place))


def _positions(config: Any) -> int:
    """Tokens that a model reads at most; of RoBERTa's table the first rows are for padding."""
    if config.model_type in ("t5", "mt5", "umt5", "longt5", "switch_transformers"):
        return 2048
    offset = int(config.pad_token_id or 0) + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    return context_of(config) - offset


def _place(name: str, task: str) -> tuple[str, Path]:
    entry = ENTRIES.get(name)
    if "://" in name:
        raise UsageError(f"{name} is an address: give the model's id, such as google-bert/bert-base-uncased, or its folder")
    if entry is not None:
        if task != entry.task and task not in entry.others:
            raise UsageError(f"{name} is for {entry.task}, and the task is {task}: give a folder that holds a model for it")
        if entry.place is None:
            raise EngineError(f"{name} is missing from this installation: install qtui again, or train it with `qtui train {name}`")
        return "package", entry.place
    folder = Path(name).expanduser()
    if folder.exists() or name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        return "folder", folder
    if not is_hub_id(name):
        fitting = [entry.name for entry in ENTRIES.values() if task in (entry.task, *entry.others)]
        raise UsageError(f"{name!r} is no model for {task}: {nearest(name, fitting)}; or give OWNER/MODEL or a folder")
    return "hub", hub.fetch(name, decoder=False)


def read_model(found: Folder, auto: str, task: str) -> Any:
    """The model of a folder, read by transformers' class ``auto``. Raises EngineError in one line."""
    import transformers

    check_floats(found)
    if found.config.get("auto_map") and str(found.config.get("model_type")) not in transformers.CONFIG_MAPPING:
        raise EngineError(f"{found.path} asks to run code that comes with it, which qtui never does: give a model that transformers knows")
    reader: Any = getattr(transformers, auto)
    options = {"dtype": torch.float32, "trust_remote_code": False, "local_files_only": True, "output_loading_info": True}
    try:
        try:
            model, info = reader.from_pretrained(found.path, attn_implementation="sdpa", **options)
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            model, info = reader.from_pretrained(found.path, attn_implementation="eager", **options)
    except Exception as error:
        raise unloadable(found, error) from error
    _complete(found, model, info, auto, task)
    check_not_zero(found, model)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise EngineError(f"{found.path} holds NaN or infinity in {name}: use another checkpoint")
    return model.eval()


def _complete(found: Folder, model: Any, info: Mapping[str, Any], auto: str, task: str) -> None:
    """Raises EngineError where tensors are missing that the model computes with."""
    if wrong := sorted(str(name) for name in info["mismatched_keys"]):
        raise EngineError(f"{found.path} has the wrong shape for {len(wrong)} of the model's tensors, {wrong[0]} first: {AGAIN}")
    missing = sorted(str(name) for name in info["missing_keys"])
    if auto == "AutoModel":
        # Nothing reads the pooler: sentences are pooled from what the last layer gives.
        missing = [name for name in missing if "pooler" not in name.split(".")]
    if not missing:
        return
    prefix = f"{model.base_model_prefix}."
    if auto != "AutoModel" and not any(name.startswith(prefix) for name in missing):
        made_of = (found.config.get("architectures") or ["a model"])[0]
        raise EngineError(
            f"{found.path} holds {made_of} without the head of {task} ({missing[0]} is missing): fine-tune it first, or give "
            "--task embeddings"
        )
    raise EngineError(f"{found.path} lacks {len(missing)} of the model's tensors, {missing[0]} first: {AGAIN}")


def pooling_of(path: Path) -> Literal["mean", "cls"]:
    """How the folder of a sentence-transformers model says that its sentences are pooled; the mean where it says nothing. Raises
    EngineError for a way that is neither."""
    try:
        found = read_json(path / "1_Pooling" / "config.json", MB)
    except (OSError, ValueError):
        return "mean"
    modes = [key for key, on in found.items() if key.startswith("pooling_mode_") and on is True] if isinstance(found, dict) else []
    known: dict[str, Literal["mean", "cls"]] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) != 1 or modes[0] not in known:
        raise EngineError(f"{path} pools its tokens by {', '.join(modes) or 'nothing'}: only the mean and the first token are known")
    return known[modes[0]]
