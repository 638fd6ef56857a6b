"""Load a language model: from the package, a local folder, or the Hugging Face hub. Nothing that it brings is executed."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, UsageError, nearest, one_line
from engine.models import hub
from engine.models.experts import holds_experts
from engine.models.language_registry import ENTRIES, is_gguf, is_hub_id
from engine.models.shards import Shards
from engine.models.soundness import check_decoder, check_floats, check_not_zero, left_over, unloadable
from engine.models.transformers_folder import Folder, look
from engine.models.unread import WHOLE, Source, unread

# Windows longer than this make perplexities of different models hard to compare, and attention slow.
LONGEST = 2048
# Tokens that are added to a tokenizer after training, and rows by which an embedding is filled up.
_ADDED, _PADDED = 16, 1024


@dataclass(frozen=True)
class LanguageModel:
    """``model`` is a transformers ``PreTrainedModel`` that predicts the next token, in float32 and eval mode; ``tokenizer`` one of
    transformers, None where the data are token ids. ``context`` is how many tokens the model reads at most; ``source`` is
    ``package``, ``hub``, ``folder`` or ``GGUF file``, and ``path`` the folder it was read from; ``notes`` are sentences that a person is
    warned with."""

    name: str
    model: Any
    tokenizer: Any
    context: int
    source: str
    path: Path
    notes: tuple[str, ...] = ()

    def logits(self, ids: Tensor) -> Tensor:
        """Token ids (N, T) to logits (N, T, vocabulary), without a cache."""
        found: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return found

    @property
    def window(self) -> int:
        """Tokens in a window for calibration and perplexity: the context, at most 2,048."""
        return min(self.context, LONGEST)

    @property
    def params(self) -> int:
        """Parameters, those of tied matrices counted once."""
        return sum(p.numel() for p in self.model.parameters())


def load_language(name: str, *, text: bool = True) -> LanguageModel:
    """The model of that ``name``: one of the registry, a folder, or a Hugging Face id. With ``text`` a tokenizer is needed.

    Raises UsageError for a name that is none of them; EngineError, in one line, for a hub that cannot be reached or refuses, and
    for a folder that is incomplete, damaged, quantized already, of an architecture that transformers does not know, or whose
    tokenizer does not fit.
    """
    source, place = _place(name)
    if is_gguf(str(place)):
        return _of_gguf(name, place, text)
    found = look(place)
    if text and not found.has_tokenizer:
        raise EngineError(f"{place} has no tokenizer (tokenizer.json, or vocab.json and merges.txt): add it, or give data of token ids")
    with quiet():
        model = _model(found)
        tokenizer = tokenizer_of(found) if found.has_tokenizer else None
        context = context_of(model.config)
        check_decoder(model, place, context)
    notes = () if tokenizer is None else check_vocabulary(tokenizer, model, place)
    return LanguageModel(name, model, tokenizer, context, source, place, notes)


def folder_of(name: str) -> Folder | None:
    """The folder of a model, judged by its files; None for a GGUF file. Raises as ``load_language`` does."""
    _, place = _place(name)
    return None if is_gguf(str(place)) else look(place)


def unread_language(name: str, shards: Shards, *, text: bool = True) -> tuple[LanguageModel, Source]:
    """The same model without its weights, and what reads them. That it predicts what it does not see is not tried: its kind and its
    blocks are judged. Raises as ``load_language`` does, and EngineError for recurrent models."""
    source, place = _place(name)
    found = look(place)
    if text and not found.has_tokenizer:
        raise EngineError(f"{place} has no tokenizer (tokenizer.json, or vocab.json and merges.txt): add it, or give data of token ids")
    _known(found)
    with quiet():
        try:
            model, reader = unread(found, shards)
        except EngineError:
            raise
        except Exception as error:
            raise unloadable(found, error) from error
        tokenizer = tokenizer_of(found) if found.has_tokenizer else None
    if getattr(model, "_is_stateful", False):
        raise EngineError(f"{place} is a recurrent model, which is not read block by block: {WHOLE}")
    if holds_experts(model):
        raise EngineError(f"{place} has experts in one tensor for each block, which are not read block by block: {WHOLE}")
    notes = () if tokenizer is None else check_vocabulary(tokenizer, model, place)
    return LanguageModel(name, model, tokenizer, context_of(model.config), source, place, notes), reader


def _of_gguf(name: str, place: Path, text: bool) -> LanguageModel:
    """The float32 model of a file whose weights another program has quantized."""
    from engine.models import gguf_file

    found = gguf_file.read(place)
    tokenizer = gguf_file.tokenizer(place) if text else None
    context = context_of(found.model.config)
    check_decoder(found.model, place, context)
    notes = () if tokenizer is None else check_vocabulary(tokenizer, found.model, place)
    said = f"{place.name} is quantized already ({found.words}): what is called fp32 here are its dequantized weights"
    return LanguageModel(name, found.model, tokenizer, context, "GGUF file", place.parent, (said, *notes))


def _place(name: str) -> tuple[str, Path]:
    entry = ENTRIES.get(name)
    if "://" in name:
        raise UsageError(f"{name} is an address: give the model's id, such as openai-community/gpt2, or its folder")
    if entry is not None and entry.folder:
        place = entry.place
        if place is None:
            raise EngineError(
                f"{name} is missing from this installation: install qtui again, or train it with `qtui train {name}` and give its folder"
            )
        return "package", place
    folder = Path(name).expanduser()
    if entry is None and (folder.exists() or name.startswith((".", "~", os.sep)) or name.count("/") > 1):
        return "folder", folder
    if entry is None and not is_hub_id(name):
        raise UsageError(f"language model {name!r} is not known: {nearest(name, list(ENTRIES))}; or give OWNER/MODEL or a folder")
    return "hub", hub.fetch(entry.hub if entry else name)


def _known(found: Folder) -> None:
    """Raises EngineError for a model that transformers has no decoder of, and for weights that are no floats."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = str(found.config["model_type"])
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if found.config.get("auto_map"):
            raise EngineError(
                f"{found.path} asks to run code that comes with it, which qtui never does: give a model that transformers knows"
            )
        raise EngineError(f"transformers knows no decoder of type {kind!r} ({found.path}): update transformers, or give another model")
    check_floats(found)


def _model(found: Folder) -> Any:
    _known(found)
    try:
        model, info = _read(found.path)
    except Exception as error:
        raise unloadable(found, error) from error
    for what, names in (("lacks", info["missing_keys"]), ("has the wrong shape for", info["mismatched_keys"])):
        if names:
            some = sorted(str(name) for name in names)
            raise EngineError(f"{found.path} {what} {len(some)} of the model's tensors, {some[0]} first: copy or download it again")
    if spare := left_over(model, [str(name) for name in info["unexpected_keys"]]):
        raise EngineError(f"{found.path} holds {spare}, which its config.json has no place for: they belong to different models")
    check_not_zero(found, model)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise EngineError(f"{found.path} holds NaN or infinity in {name}: use another checkpoint")
    return model.eval()


def _read(path: Path) -> tuple[Any, Any]:
    """The model, and what transformers says of tensors that did not fit. Attention is named: a config cannot ask for a kernel from
    the hub."""
    import transformers

    decoders: Any = transformers.AutoModelForCausalLM
    options = {"dtype": torch.float32, "trust_remote_code": False, "local_files_only": True, "output_loading_info": True}
    try:
        found = decoders.from_pretrained(path, attn_implementation="sdpa", **options)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        found = decoders.from_pretrained(path, attn_implementation="eager", **options)
    model, info = found
    return model, info


def tokenizer_of(found: Folder) -> Any:
    """The tokenizer of a folder, one of transformers. Raises EngineError where it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(found.path, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise EngineError(f"the tokenizer in {found.path} cannot be read ({one_line(error, 160)}): copy or download it again") from error


def check_vocabulary(tokenizer: Any, model: Any, place: Path) -> tuple[str, ...]:
    """Warnings where a few tokens have no row of the embedding, such as a pad that was added and is never read, or many rows no token:
    embeddings are padded to round numbers. Raises EngineError where most of the one or the other has no counterpart."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    ids = max(tokenizer.get_vocab().values(), default=-1) + 1
    sizes = f"the tokenizer has {ids:,} tokens and the embedding {rows:,} rows"
    if ids - rows > max(0.01 * rows, _ADDED) or ids < 0.9 * rows - _PADDED:
        raise EngineError(f"{place}: {sizes}: they belong to different models")
    if ids > rows:
        return (f"{sizes}: a text with an id of {rows:,} or more is refused",)
    return (f"{sizes}: the rest is never read",) if ids < 0.9 * rows - 512 else ()


def context_of(config: Any) -> int:
    """Tokens that a model of that configuration reads at most; 2,048 where it does not say."""
    for name in ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 1:
            return value
    return LONGEST


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and reports on the terminal: what they say is judged here."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(50)  # CRITICAL
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
