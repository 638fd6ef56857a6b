"""A byte-level BPE of our own, and documents as a stream of token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from engine.data.text.documents import Document

if TYPE_CHECKING:
    from torch import Tensor

END = "<|endoftext|>"


def train_bpe(texts: Iterable[str], vocabulary: int, special: Sequence[str] = (END,)) -> Any:
    """A byte-level BPE as GPT-2's (Radford et al. 2019), a ``tokenizers.Tokenizer`` of ``vocabulary`` tokens; the last are ``special``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def encode(tokenizer: Any, documents: Sequence[Document], *, ends: bool = True, check: Callable[[], None] = lambda: None) -> Tensor:
    """The documents one after the other as ids (tokens,), int64. With ``ends`` the end-of-text follows each, where the tokenizer has
    one; before each is what the tokenizer itself begins a text with, such as ``<s>``. No other special token is added.

    ``tokenizer`` is one of transformers; ``check`` is called before each document.
    """
    import torch

    end = tokenizer.eos_token_id if ends else None
    begins = beginning(tokenizer)
    ids: list[int] = []
    for document in documents:
        check()
        ids.extend(begins)
        ids.extend(tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"])
        if end is not None:
            ids.append(end)
    return torch.tensor(ids, dtype=torch.int64)


def beginning(tokenizer: Any) -> list[int]:
    """The special tokens that ``tokenizer`` puts before a text when it is left to add its own."""
    bare = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"]
    at = next((at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare), 0)
    return list(whole[:at])


def fingerprint(tokenizer: Any) -> str:
    """What decides the ids that a tokenizer gives, in 16 hexadecimal digits."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    told = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{type(tokenizer).__name__} {tokenizer.eos_token_id} {told}".encode()).hexdigest()[:16]
