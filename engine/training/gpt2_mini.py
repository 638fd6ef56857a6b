"""``gpt2-mini``: a GPT-2 of 3.8 M parameters, trained here on the documentation that CPython carries."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.data.text.documents import python_docs, split_of
from engine.data.text.tokens import END, encode, train_bpe
from engine.errors import UsageError
from engine.events.cancellation import StopToken
from engine.events.event import Event, Notice, StageFinished, StageStarted
from engine.paths import check_writable, save
from engine.tasks.perplexity import Perplexity, stream_perplexity
from engine.training.language_fit import TextSchedule, fit_text
from engine.training.precision import precision
from engine.training.trainable import TrainingContext

VOCABULARY, CONTEXT = 2048, 512
SCHEDULE = TextSchedule(epochs=16, context=CONTEXT, short=11)
SHAPE: dict[str, Any] = {"n_embd": 256, "n_layer": 4, "n_head": 4}


def train_mini(
    out: Path, schedule: TextSchedule = SCHEDULE, *, stop: StopToken, command: str = "", device: str = "cpu"
) -> Generator[Event, None, Path]:
    """Train tokenizer and model on the train split of ``python_docs``; the epoch that is best on validation is written to the
    folder ``out`` as transformers reads it, in float16, and with it ``record.json``: command, seed and perplexity on the
    test split. Each epoch is kept in ``out`` until the end and continued by the same call. Raises EngineError, Cancelled on stop."""
    yield StageStarted("train", f"training gpt2-mini on python-docs: {schedule.epochs} epochs")
    check_writable(out / "model.safetensors")
    start = time.perf_counter()
    documents = python_docs()
    bpe = train_bpe((d.text for d in documents if split_of(d.name) == "train"), VOCABULARY)
    tokenizer = _fast(bpe)
    streams = {split: encode(tokenizer, [d for d in documents if split_of(d.name) == split]) for split in ("train", "validation", "test")}
    torch.manual_seed(schedule.seed)
    model = build(schedule.dropout).to(device)
    identity = json.dumps([asdict(schedule), torch.__version__, _digest(streams["train"])])
    checkpoint = out / "checkpoint.pt"

    def logits(ids: Tensor) -> Tensor:
        result: Tensor = model(input_ids=ids, use_cache=False).logits
        return result

    context = TrainingContext(stop, "train", device, checkpoint, identity)
    fitted = yield from fit_text(model, logits, streams["train"], streams["validation"], schedule, context)
    # What ships is judged: the weights as float16 holds them.
    model.load_state_dict({name: tensor.half().float() for name, tensor in fitted.best.items()})
    model.eval()
    whole = yield from stream_perplexity(logits, streams["test"], CONTEXT, CONTEXT, stop=stop, device=device)
    sliding = yield from stream_perplexity(logits, streams["test"], CONTEXT, CONTEXT // 2, stop=stop, device=device)
    record = {
        "model": "gpt2-mini", "data": "python-docs", "command": command, "seed": schedule.seed, "schedule": asdict(schedule),
        "vocabulary": VOCABULARY, "train_tokens": len(streams["train"]), "best_epoch": fitted.epoch,
        "validation_perplexity": round(fitted.value, 3), "test_perplexity": round(whole.value, 3),
        "test": [_rounded(whole), _rounded(sliding)], "torch": torch.__version__.split("+")[0],
        "seconds": round(time.perf_counter() - start, 1), "threads": torch.get_num_threads(),
        "precision": precision(schedule, device) or "float32",
    }  # fmt: skip
    _write(out, model, bpe, record)
    checkpoint.unlink(missing_ok=True)
    yield Notice(
        f"best epoch {fitted.epoch}: perplexity {fitted.value:.2f} on validation, {whole.value:.2f} on {whole.tokens:,} test tokens"
    )
    yield StageFinished("train", time.perf_counter() - start)
    return out / "model.safetensors"


def build(dropout: float = 0.0) -> Any:
    """The network with random weights, in eval mode: a ``transformers.GPT2LMHeadModel`` with a tied head."""
    from transformers import GPT2Config, GPT2LMHeadModel

    # Dropout of attention weights would take the slow path of attention.
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, **SHAPE, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh", bos_token_id=VOCABULARY - 1, eos_token_id=VOCABULARY - 1, use_cache=True,
    )  # fmt: skip
    model: Any = GPT2LMHeadModel(config)
    return model.eval()


def with_epochs(schedule: TextSchedule, epochs: int) -> TextSchedule:
    """As many epochs, the same part of them in short windows."""
    return replace(schedule, epochs=epochs, short=epochs * schedule.short // schedule.epochs)


def _fast(bpe: Any) -> Any:
    import transformers

    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(tokenizer_object=bpe, eos_token=END, bos_token=END, model_max_length=CONTEXT)


def _write(out: Path, model: Any, bpe: Any, record: dict[str, Any]) -> None:
    from safetensors.torch import save as to_safetensors

    state = {name: tensor.detach().cpu().half().contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    config = {
        **model.config.to_diff_dict(),
        "architectures": ["GPT2LMHeadModel"],
        "dtype": "float16",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    }
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END, "model_max_length": CONTEXT}
    save(out / "tokenizer.json", (bpe.to_str(pretty=False) + "\n").encode())
    for name, content in (("config.json", config), ("tokenizer_config.json", about), ("record.json", record)):
        save(out / name, (json.dumps(content, indent=2) + "\n").encode())
    save(out / "model.safetensors", to_safetensors(state, metadata={"format": "pt"}))


def _rounded(found: Perplexity) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.to_dict().items()}


def _digest(stream: Tensor) -> str:
    return hashlib.sha256(stream.numpy().tobytes()).hexdigest()[:16]


def check(model: str, data: str | None) -> None:
    """Raises UsageError for a language model that is not trained here, and for data that is not its own."""
    if model != "gpt2-mini":
        raise UsageError(f"{model} comes trained, qtui trains gpt2-mini alone: give {model} to qtui run")
    if data not in (None, "python-docs"):
        raise UsageError(f"gpt2-mini is trained on python-docs, not on {data}: leave --data out")
