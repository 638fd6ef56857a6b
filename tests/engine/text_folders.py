"""Small encoders and seq2seq models with random weights, in folders as transformers writes them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = [
    "good",
    "bad",
    "fine",
    "awful",
    "great",
    "poor",
    "nice",
    "terrible",
    "film",
    "book",
    "plot",
    "actor",
    "story",
    "end",
    "begin",
    "the",
    "a",
    "of",
    "and",
    "is",
    "was",
]
SHAPE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip


def tokenizer() -> Any:
    """Of whole words, with BERT's special tokens and token types."""
    known = {token: i for i, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    words: Any = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", eos_token="[SEP]",
        model_max_length=64, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def write(folder: Path, model: Any) -> Path:
    """The folder of ``model`` with the tokenizer; its answers vary from text to text."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1 and "embeddings" not in name:
                p.mul_(3.0)
    model.eval().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def bert(
    folder: Path, kind: str = "BertForSequenceClassification", labels: tuple[str, ...] = ("negative", "positive"), pairs: bool = False
) -> Path:
    torch.manual_seed(0)
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config = transformers.BertConfig(vocab_size=len(WORDS) + 4, pad_token_id=0, **{**SHAPE, **named})
    model = getattr(transformers, kind)(config)
    write(folder, model)
    if hasattr(model, "classifier"):
        # Every label is the answer to some texts.
        given = tokenizer()(texts(64, seed=3), *([texts(64, seed=4)] if pairs else []), padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**given).logits.flatten(0, -2)
            model.classifier.bias.sub_(logits.mean(0))
            model.classifier.weight.mul_(4.0)
            model.classifier.bias.mul_(4.0)
        model.save_pretrained(folder)
    return folder


def texts(count: int, seed: int = 0, least: int = 2, most: int = 14) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most))) for _ in range(count)]


def answered(folder: Path, rows: list[str], second: list[str] | None = None) -> list[tuple[int, str]]:
    """Of half of the rows, those that the model of ``folder`` is surest of, the place and the label that it gives, by transformers alone
    and one text at a time; as many of each label."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    found: dict[str, list[tuple[float, int]]] = {}
    for i, text in enumerate(rows):
        with torch.no_grad():
            logits = model(**words(text, *([second[i]] if second else []), return_tensors="pt")).logits[0]
        most, next_most = logits.topk(2).values.tolist()
        found.setdefault(model.config.id2label[int(logits.argmax())], []).append((next_most - most, i))
    found = {label: some for label, some in found.items() if len(some) > 5}
    count = min(len(rows) // 2 // len(found), *(len(some) for some in found.values()))
    return sorted((i, label) for label, some in found.items() for _, i in sorted(some)[:count])


def jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
