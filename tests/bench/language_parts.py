"""What the bench of language models measures, and how."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from engine.data.text.encoded import SequenceData, TextData
from engine.events.cancellation import StopToken
from engine.kernels.probe import probe
from engine.lowering.modules.blocks import Task, quantize_blocks
from engine.lowering.modules.capture import capture
from engine.lowering.modules.finetune import finetune
from engine.lowering.modules.quantized import QuantizedDecoder, apply, duplicate
from engine.lowering.modules.runtime import running
from engine.models.anatomy import anatomy, blocks_of, weight_of
from engine.models.transformers_load import LanguageModel
from engine.numerics.quantized_matrix import QuantizedMatrix
from engine.numerics.scheme import WeightScheme, int_scheme
from engine.numerics.weights import minmax, quantize
from engine.recipe.presets import DYNAMIC
from engine.tasks.decode_timing import Lengths, step_of, tokens_per_second
from engine.tasks.perplexity import Perplexity, sequence_perplexity, stream_perplexity
from engine.training.finetune import TuneSchedule
from engine.training.trainable import TrainingContext

KL_TOKENS = 6000
T = TypeVar("T")
Texts = list[tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Row:
    """``blocks`` and ``model`` are bytes; None is what was not measured."""

    weights: str
    method: str
    perplexity: Perplexity
    divergence: float
    blocks: int
    model: int
    seconds: float | None
    speed: float


@dataclass(frozen=True)
class Calibration:
    """``texts`` are what methods see; ``lessons`` what is fine-tuned on, and judged by on the way."""

    texts: Texts
    lessons: TextData | SequenceData
    about: str


class Bench:
    """A language model and the text it is judged by."""

    def __init__(self, language: LanguageModel, data: TextData | SequenceData, head: bool) -> None:
        self.language, self.data, self.head = language, data, head
        self.anatomy = anatomy(language.model)
        self.blocks = [m for m in self.anatomy.matrices if m.block is not None and m.kind != "Embedding"]
        self.base = self.perplexity(language.model)
        self._compared = self._few()
        with torch.inference_mode():
            self._reference = [self._told(language.model, ids, keep) for ids, keep in self._compared]

    def about(self) -> Iterator[str]:
        base, numbers = self.base, sum(m.shape[0] * m.shape[1] for m in self.blocks)
        name = self.language.path.name if self.language.source == "folder" else self.language.name
        more = ", embeddings and head in int8" if self.head else ""
        yield (
            f"**{name}**, {self.language.params / 1e6:.1f} M parameters, on {self.data.name.rpartition('/')[2]}: fp32 "
            f"perplexity {base.value:.3f} on {base.tokens:,} tokens of the test split ({base.protocol}"
            f"{f' of {base.context:,}, stride {base.stride}' if base.stride else ''}; 95 % interval {base.low:.2f} to {base.high:.2f})."
        )
        yield (
            f"Quantized: the {numbers / 1e6:.2f} M weights of the blocks' linear layers, {numbers * 2 / 1e6:.2f} MB in fp16{more}; the "
            f"rest is float32. The whole model has {self.language.params * 2 / 1e6:.2f} MB in fp16."
        )

    def calibration(self, windows: int, own: int, seed: int) -> Calibration:
        """What methods see. ``own`` sequences are written by the model itself."""
        if isinstance(self.data, TextData):
            if own:
                sys.exit("--own is for sequences of token ids: leave it out")
            ids = self.data.windows("train", self.language.window, windows, seed)
            found: Texts = [(some, None) for some in torch.split(ids, 8)]
            return Calibration(found, self.data, f"Calibration: {len(ids)} windows of the train split, {ids.numel():,} tokens.")
        parts = self.data.sequences
        half = [*parts["train"], *parts["validation"]]
        about = f"Calibration: {len(half)} sequences, {sum(map(len, half)):,} tokens"
        if not own:
            return Calibration([*padded(half)], self.data, about + ".")
        # An eighth more of them judge the epochs of fine-tuning, and nothing else.
        found = written(self.language.model, own + own // 8, self.language.window, seed)
        more, judging = found[:own], found[own:]
        lessons = {**parts, "train": (*parts["train"], *more), "validation": (*parts["validation"], *judging)}
        about += f", and {own:,} written by the fp32 model itself, {sum(map(len, more)):,} tokens."
        return Calibration([*padded(half + more)], SequenceData(self.data.name, lessons), about)

    def perplexity(self, model: Any) -> Perplexity:
        def logits(ids: Tensor) -> Tensor:
            found: Tensor = model(input_ids=ids, use_cache=False).logits
            return found

        if isinstance(self.data, TextData):
            return finished(stream_perplexity(logits, self.data.streams["test"], self.language.window, stop=StopToken()))
        return finished(sequence_perplexity(logits, self.data.sequences["test"], stop=StopToken()))

    def judged(self, weights: str, method: str, decoder: QuantizedDecoder, seconds: float) -> Row:
        divergence, count = 0.0, 0
        run = running(decoder, probe())[0]
        # What a kernel computes on float activations is what the integers stand for: float32 is the faster way to it.
        model = run if any(matrix.activations for matrix in decoder.matrices.values()) else decoder.twin
        with torch.inference_mode():
            for (ids, keep), wanted in zip(self._compared, self._reference, strict=True):
                found = self._told(model, ids, keep)
                divergence += float((wanted.exp() * (wanted - found)).double().sum())
                count += len(found)
        value = self.perplexity(model)
        blocks = sum(decoder.matrices[m.path].bytes for m in self.blocks)
        return Row(weights, method, value, divergence / count, blocks, decoder.bytes, seconds, self.speed(run))

    def speed(self, model: Any) -> float:
        """Tokens a second that ``model`` writes with its cache."""
        lengths = Lengths(prompt=32).within(self.language.context)
        rows = int(self.language.model.get_input_embeddings().weight.shape[0])
        return finished(tokens_per_second({"it": step_of(model)}, rows, lengths, StopToken()))["it"].decode

    def line(self, row: Row) -> str:
        value = row.perplexity.value
        seconds = "–" if row.seconds is None else f"{row.seconds:.1f}"
        return (
            f"| {row.weights} | {row.method} | {value:.3f} | {value / self.base.value:.4f} | {row.divergence:.4f} | {row.blocks / 1e6:.2f} "
            f"MB | {row.model / 1e6:.2f} MB | {seconds} | {row.speed:.0f} |"
        )

    def block_bytes(self, size: int) -> int:
        return sum(m.shape[0] * m.shape[1] for m in self.blocks) * size

    @property
    def model_bytes(self) -> int:
        return self.language.params * 4

    def _few(self) -> Texts:
        """Some of the test, on which answers are compared."""
        if isinstance(self.data, SequenceData):
            chosen, left = [], KL_TOKENS
            for ids in self.data.sequences["test"]:
                left -= len(ids)
                chosen += [ids] if left >= 0 else []
            return [*padded(chosen)]
        window = self.language.window
        stream = self.data.streams["test"][: max(KL_TOKENS // window, 1) * window]
        return [(ids, None) for ids in torch.split(stream.view(-1, window), 4)]

    @staticmethod
    def _told(model: Any, ids: Tensor, keep: Tensor | None) -> Tensor:
        """Log-probabilities (tokens, vocabulary) of the token after each that is kept."""
        out: Tensor = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return (out.flatten(0, 1) if keep is None else out[keep[:, 1:]]).log_softmax(-1)


def quantized(bench: Bench, calibration: Calibration, spec: WeightScheme, method: str, dynamic: bool) -> QuantizedDecoder:
    twin = duplicate(bench.language.model)
    path, modules = blocks_of(twin)
    blocks = [(f"{path}.{number}", block) for number, block in enumerate(modules)]

    def run(ids: Tensor) -> object:
        return twin(input_ids=ids, use_cache=False)

    with torch.no_grad():
        found = finished(quantize_blocks(blocks, capture(run, list(modules), calibration.texts), lambda _: Task(spec, method)))
    activations = DYNAMIC if dynamic else None
    matrices = {name: QuantizedMatrix(weight, activations) for name, weight in found.items()}
    for matrix in bench.anatomy.matrices if bench.head else ():
        if matrix.path in matrices:
            continue
        if matrix.tied:
            matrices[matrix.path] = QuantizedMatrix(matrices[matrix.tied].weight, tied=matrix.tied)
            continue
        weight = weight_of(twin.get_submodule(matrix.path))
        matrices[matrix.path] = QuantizedMatrix(quantize(weight, minmax(weight, int_scheme(8, 0, True))))
        apply(twin, {matrix.path: matrices[matrix.path].weight})
    return QuantizedDecoder(twin, matrices)


def finetuned(bench: Bench, decoder: QuantizedDecoder, lessons: TextData | SequenceData, epochs: int, seed: int) -> QuantizedDecoder:
    short = isinstance(lessons, SequenceData)
    schedule = TuneSchedule(
        epochs=epochs, context=bench.language.window, windows=10**6 if short else 256,
        distill=1.0 if short else 0.5, seed=seed,
    )  # fmt: skip
    weights = {path: matrix.weight for path, matrix in decoder.matrices.items()}
    found = finished(finetune(bench.language.model, decoder.twin, weights, lessons, schedule, TrainingContext(StopToken(), "qat")))
    return QuantizedDecoder(found.model, {path: replace(matrix, weight=found.weights[path]) for path, matrix in decoder.matrices.items()})


def padded(sequences: Sequence[Tensor], rows: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids with padding on the right, and where they are no padding; sequences of like length together."""
    ordered = sorted(sequences, key=len)
    for start in range(0, len(ordered), rows):
        some = ordered[start : start + rows]
        ids = torch.zeros(len(some), max(map(len, some)), dtype=torch.int64)
        keep = torch.zeros(ids.shape, dtype=torch.bool)
        for row, sequence in enumerate(some):
            ids[row, : len(sequence)], keep[row, : len(sequence)] = sequence, True
        yield ids, keep


def written(model: Any, count: int, context: int, seed: int) -> list[Tensor]:
    """Sequences of at most 64 tokens that ``model`` writes from its first token on, sampled at temperature 1."""
    torch.manual_seed(seed)
    config, found = model.config, []
    more = {"max_new_tokens": min(64, context) - 1, "pad_token_id": config.eos_token_id, "eos_token_id": config.eos_token_id}
    for start in range(0, count, 128):
        first = torch.full((min(128, count - start), 1), config.bos_token_id)
        with torch.inference_mode():
            rows = model.generate(first, attention_mask=torch.ones_like(first), do_sample=True, top_k=0, **more).tolist()
        for row in rows:
            found.append(torch.tensor(row[: row.index(config.eos_token_id, 1) + 1] if config.eos_token_id in row[1:] else row))
    return found


def finished(steps: Generator[Any, None, T]) -> T:
    """What a generator of events returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
