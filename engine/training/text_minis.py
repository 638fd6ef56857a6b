"""The small models on text that ship with qtui: tokenizer and network, trained here in a few minutes and written as transformers reads
them."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.data import registry as data_registry
from engine.data.items import ItemData
from engine.data.text.tokens import train_bpe
from engine.errors import UsageError
from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice, StageFinished, StageStarted
from engine.models.text_models import Logits, TextModel
from engine.models.text_registry import ENTRIES, TextEntry
from engine.models.weights_file import restore
from engine.paths import check_writable, save
from engine.recipe.recipe import Recipe
from engine.tasks import seq2seq, text_classification
from engine.tasks.items import ItemTask
from engine.training.loop import fit
from engine.training.precision import precision
from engine.training.task_model import ItemSchedule, TaskBatches, TaskModel, measured, validation
from engine.training.trainable import TrainingContext

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Mini:
    """``shape`` are fields of the model's configuration; ``vocabulary`` counts the tokens."""

    vocabulary: int
    shape: Mapping[str, Any]
    schedule: ItemSchedule


MINIS: dict[str, Mini] = {
    "bert-mini": Mini(
        2048,
        {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 384, "max_position_embeddings": 64},
        ItemSchedule(epochs=12, batch=32, lr=2e-3, optimizer="adamw", weight_decay=0.05, warmup=0.1),
    ),
    "t5-mini": Mini(
        13,
        {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
        # Before it makes no mistake at all: a loss must be left to compare.
        ItemSchedule(epochs=5, batch=32, lr=2e-3, optimizer="adamw", weight_decay=0.01, warmup=0.05),
    ),
}


def check(model: str, data: str | None) -> None:
    """Raises UsageError for a model on text that is not trained here, and for data that is not its own."""
    if model not in MINIS:
        raise UsageError(f"{model} comes trained, qtui trains {', '.join(MINIS)}: give {model} to qtui run")
    if data not in (None, ENTRIES[model].data):
        raise UsageError(f"{model} is trained on {ENTRIES[model].data}, not on {data}: leave --data out")


def train_mini(
    name: str, out: Path, *, stop: StopToken, epochs: int | None = None, seed: int = 0, command: str = "", device: str = "cpu"
) -> Generator[Event, None, Path]:
    """Train the model of that name on its data; the epoch that is best on validation is written to the folder ``out``, in float16, and
    with it ``record.json``: command, seed and the metric on the test split. Each epoch is kept in ``out`` until the end and continued
    by the same call. Raises EngineError, Cancelled on stop."""
    entry, mini = ENTRIES[name], MINIS[name]
    schedule = replace(mini.schedule, seed=seed, epochs=mini.schedule.epochs if epochs is None else epochs)
    yield StageStarted("train", f"training {name} on {entry.data}: {schedule.epochs} epochs")
    check_writable(out / "model.safetensors")
    start = time.perf_counter()
    recipe = Recipe.make(model=name, task=entry.task, data={"name": entry.data})
    items = data_registry.items(recipe.data, entry.task)
    torch.manual_seed(seed)
    tokenizer = _words(items, mini) if entry.task == "seq2seq" else _tokenizer(items, mini)
    network = _network(entry, mini, tokenizer, items.labels)
    language = TextModel(name, network, tokenizer, tokenizer.model_max_length, items.labels, "package", out)
    task, module = _task(entry, language, items, recipe)
    module.to(device)
    identity = json.dumps([name, asdict(schedule), torch.__version__, task.count("train")])
    context = TrainingContext(stop, "train", device, out / "checkpoint.pt", identity)
    judge = validation(module, task, schedule, context)
    fitted = yield from fit(TaskModel(module, task), TaskBatches(task, schedule, device), judge, schedule, context)
    # What ships is judged: the weights as float16 holds them.
    restore(module, {key: tensor.half().float() if tensor.is_floating_point() else tensor for key, tensor in fitted.best.items()})
    test = measured(module, task, "test", 64, stop, device)
    metric = task.metric
    record = {
        "model": name, "data": entry.data, "task": entry.task, "command": command, "seed": seed, "schedule": asdict(schedule),
        "vocabulary": mini.vocabulary, "best_epoch": fitted.epoch, f"validation_{metric.name}": round(fitted.value, 4),
        f"test_{metric.name}": round(test, 4), f"test_{task.plural}": task.count("test"), "torch": torch.__version__.split("+")[0],
        "seconds": round(time.perf_counter() - start, 1), "threads": torch.get_num_threads(),
        "precision": precision(schedule, device) or "float32",
    }  # fmt: skip
    _write(out, network, tokenizer, record)
    (out / "checkpoint.pt").unlink(missing_ok=True)
    value = f"{metric.titled(fitted.value)} on validation, {metric.titled(test)} on the {task.count('test'):,} test {task.plural}"
    yield Notice(f"best epoch {fitted.epoch}: {value}")
    yield StageFinished("train", time.perf_counter() - start)
    return out / "model.safetensors"


def _task(entry: TextEntry, language: TextModel, items: ItemData, recipe: Recipe) -> tuple[ItemTask, nn.Module]:
    if entry.task == "seq2seq":
        return seq2seq.task_for(language, items, recipe), seq2seq.Seq2SeqLogits(language.model)
    return text_classification.task_for(language, items, recipe, text_classification.TextClassification), Logits(language.model)


def _network(entry: TextEntry, mini: Mini, tokenizer: Any, labels: tuple[str, ...]) -> Any:
    import transformers

    t5: Any = transformers.T5Config
    if entry.task == "seq2seq":
        return transformers.T5ForConditionalGeneration(t5(
            vocab_size=mini.vocabulary, **mini.shape, dropout_rate=0.0, feed_forward_proj="relu", pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=tokenizer.pad_token_id,
        ))  # fmt: skip
    return transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=mini.vocabulary, **mini.shape, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id, id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    ))  # fmt: skip


def _words(items: ItemData, mini: Mini) -> Any:
    """A tokenizer of whole words, those of the training sources, with the end of a text behind each."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = sorted({word for row in items.train.read(range(len(items.train))).inputs for word in row[0].split()})
    tokenizer: Any = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(("<pad>", "</s>", "<unk>", *words))}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64)


def _tokenizer(items: ItemData, mini: Mini) -> Any:
    """A byte-level BPE of the training texts, with BERT's special tokens."""
    import transformers
    from tokenizers import processors

    texts = (text for row in items.train.read(range(len(items.train))).inputs for text in row)
    bpe = train_bpe(texts, mini.vocabulary, SPECIAL)
    ids = {token: bpe.token_to_id(token) for token in SPECIAL}
    bpe.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    )
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(
        tokenizer_object=bpe, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        model_max_length=int(mini.shape["max_position_embeddings"]), model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def _write(out: Path, model: Any, tokenizer: Any, record: dict[str, Any]) -> None:
    from safetensors.torch import save as to_safetensors

    # Tied matrices are stored once.
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    state = {name: tensor.detach().cpu().half().contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    config = {
        **model.config.to_diff_dict(), "architectures": [type(model).__name__], "dtype": "float16", "hidden_dropout_prob": 0.0,
        "model_type": model.config.model_type,
    }  # fmt: skip
    tokenizer.save_pretrained(out)
    for name, content in (("config.json", config), ("record.json", record)):
        save(out / name, (json.dumps(content, indent=2) + "\n").encode())
    save(out / "model.safetensors", to_safetensors(state, metadata={"format": "pt"}))
