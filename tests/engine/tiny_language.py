"""Small language models with random weights, as the tests of every module need them."""

from __future__ import annotations

import json
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from engine.data.text.documents import SPLITS
from engine.data.text.documents import Document as Document
from engine.data.text.encoded import SequenceData, TextData
from engine.data.text.tokens import END, train_bpe
from engine.models.transformers_load import LanguageModel
from engine.tasks.causal_lm import CausalLM

T = TypeVar("T")
ROWS, CONTEXT = 300, 32
_TEXT = "the quick brown fox jumps over a lazy dog while nobody looks at it and returns a new value to the caller"
WORDS = _TEXT.split()


def finished(steps: Generator[Any, None, T]) -> T:
    """What a generator of events returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def sentences(count: int, seed: int = 0) -> str:
    """Lines of random words."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(WORDS), (count, 12), generator=draw).tolist()
    return "".join(" ".join(WORDS[i] for i in row) + ".\n" for row in rows)


@cache
def tokenizer() -> Any:
    import transformers

    bpe = train_bpe([sentences(50)], ROWS)
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(tokenizer_object=bpe, eos_token=END, bos_token=END)


def gpt2(rows: int = ROWS, seed: int = 0, **changes: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    shape = {"n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0, **changes}
    model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=rows, initializer_range=0.3, **shape))
    return model.eval()


def language(seed: int = 0) -> LanguageModel:
    return LanguageModel("tiny", gpt2(seed=seed), tokenizer(), CONTEXT, "folder", Path())


def task(text: torch.Tensor | tuple[torch.Tensor, ...], stride: int = 16, context: int = CONTEXT) -> CausalLM:
    """A stream, or sequences, as every split of the text that a tiny model is measured on."""
    held = SequenceData("t", dict.fromkeys(SPLITS, text)) if isinstance(text, tuple) else TextData("t", dict.fromkeys(SPLITS, text), {})
    return CausalLM(language(), held, context, stride)


def write_folder(path: Path, model: Any = None, with_tokenizer: bool = True) -> Path:
    """A folder as ``save_pretrained`` writes it."""
    (model or gpt2()).save_pretrained(path)
    if with_tokenizer:
        tokenizer().save_pretrained(path)
    return path


def edit_config(folder: Path, **changes: Any) -> None:
    place = folder / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))
