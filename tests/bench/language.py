"""Method x bits x group on a GPT-2 whose tokens need no tokenizer: perplexity on the held-out half of its sequences.

    python tests/bench/language.py FOLDER SEQUENCES.json [--methods gptq,awq] [--specs w4g64,w3g64,w8] [--own 512] [--seed 0]

FOLDER is a transformers folder (config.json and weights), SEQUENCES a list of lists of token ids. Calibration sees the
sequences of even index, perplexity those of odd index, scored from the second token on. All linear layers of the blocks are
quantized; embeddings, norms, biases and the head (tied to the embedding in GPT-2) stay in float32, and ``MB`` counts the
quantized matrices alone: packed integers, float16 scales, packed zero points. ``--own N`` adds N sequences that the fp32 model
writes itself to the calibration text (self-calibration: Williams et al. 2024, arXiv:2410.17170); none of them is measured.
``KL`` is the mean divergence of the next token's distribution from fp32's, in nats: it varies less than perplexity does.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.algorithms.capture import capture
from engine.algorithms.registry import METHODS
from engine.algorithms.sequential import Task, quantize_blocks
from engine.quant.grouped import GroupedWeight, GroupSpec

SPECS = ["w8", "w4", "w4g64s", "w4g128", "w4g64", "w4g32", "w3g64", "w3g32"]


def spec_of(text: str) -> GroupSpec:
    """``w4g64`` is 4 bits, affine, in groups of 64; an ``s`` at the end is symmetric; without ``g`` per channel and symmetric."""
    match = re.fullmatch(r"w(\d)(?:g(\d+)(s?))?", text)
    if match is None:
        sys.exit(f"{text} is no width: write w8, w4g64 or w4g64s")
    return GroupSpec(int(match[1]), int(match[2] or 0), match[2] is None or match[3] == "s")


def batches(sequences: Sequence[Sequence[int]], rows: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids with padding on the right, and where they are no padding; sequences of like length together."""
    ordered = sorted(sequences, key=len)
    for start in range(0, len(ordered), rows):
        some = ordered[start : start + rows]
        ids = torch.zeros(len(some), max(map(len, some)), dtype=torch.int64)
        keep = torch.zeros(ids.shape, dtype=torch.bool)
        for row, sequence in enumerate(some):
            ids[row, : len(sequence)], keep[row, : len(sequence)] = torch.tensor(sequence), True
        yield ids, keep


def logs(model: Any, ids: Tensor, scored: Tensor) -> Tensor:
    """Log-probabilities (tokens, vocabulary) of the token after each of those that are ``scored``."""
    hidden = model.transformer(ids, use_cache=False).last_hidden_state[:, :-1][scored]
    return torch.as_tensor(model.lm_head(hidden)).log_softmax(-1)


def scores(model: Any, reference: Sequence[Tensor], sequences: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Perplexity, and the mean KL divergence from ``reference``, the fp32 model's ``logs`` of each batch, in nats a token."""
    nll = divergence = count = 0.0
    for (ids, keep), wanted in zip(batches(sequences), reference, strict=True):
        found = logs(model, ids, keep[:, 1:])
        nll -= float(found.gather(1, ids[:, 1:][keep[:, 1:]][:, None]).double().sum())
        divergence += float((wanted.exp() * (wanted - found)).double().sum())
        count += len(found)
    return math.exp(nll / count), divergence / count


def written(model: Any, count: int, seed: int) -> list[list[int]]:
    """Sequences that ``model`` writes from its first token on, sampled at temperature 1."""
    torch.manual_seed(seed)
    config, found = model.config, []
    for start in range(0, count, 128):
        first = torch.full((min(128, count - start), 1), config.bos_token_id)
        more = {"max_new_tokens": 63, "pad_token_id": 0, "eos_token_id": config.eos_token_id}
        for row in model.generate(first, attention_mask=torch.ones_like(first), do_sample=True, top_k=0, **more).tolist():
            found.append(row[: row.index(config.eos_token_id, 1) + 1] if config.eos_token_id in row[1:] else row)
    return found


def quantized(model: Any, text: Sequence[Sequence[int]], task: Task) -> tuple[Any, dict[str, GroupedWeight]]:
    """A copy of ``model`` with every linear layer of its blocks quantized, and the packed weights."""
    twin = copy.deepcopy(model)
    blocks = [(f"transformer.h.{i}", block) for i, block in enumerate(twin.transformer.h)]
    entering = capture(lambda ids: twin.transformer(ids, use_cache=False), [block for _, block in blocks], batches(text))
    steps = quantize_blocks(blocks, entering, lambda _: task)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return twin, end.value


def main() -> None:
    from transformers import GPT2LMHeadModel

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sequences", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--specs", default=",".join(SPECS))
    parser.add_argument("--own", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_grad_enabled(False)
    model = GPT2LMHeadModel.from_pretrained(asked.folder).eval()
    sequences = json.loads(asked.sequences.read_text())
    text, test = sequences[0::2], sequences[1::2]
    reference = [logs(model, ids, keep[:, 1:]) for ids, keep in batches(test)]
    base, _ = scores(model, reference, test)
    weights = sum(p.numel() for name, p in model.transformer.h.named_parameters() if p.dim() == 2)
    print(f"fp32 on {len(test)} held-out sequences, {sum(map(len, reference)):,} tokens scored: {base:.3f}")
    print(f"quantized: {weights / 1e6:.2f} M weights of the blocks, {weights * 2 / 1e6:.2f} MB in fp16; the rest is kept in fp32")
    if asked.own:
        since = time.perf_counter()
        text = text + written(model, asked.own, asked.seed)
        print(f"{asked.own} sequences written by the model itself in {time.perf_counter() - since:.0f} s")
    print(f"calibration: {len(text)} sequences, {sum(map(len, text)):,} tokens")
    print(f"{'bits':<18}{'method':<14}{'perplexity':>11}{'x fp32':>9}{'KL':>9}{'MB':>7}{'seconds':>9}", flush=True)
    for spec in map(spec_of, asked.specs.split(",")):
        for name in asked.methods.split(","):
            since = time.perf_counter()
            twin, packed = quantized(model, text, Task(spec, name))
            seconds = time.perf_counter() - since
            value, divergence = scores(twin, reference, test)
            size = sum(weight.bytes for weight in packed.values()) / 1e6
            print(f"{spec!s:<18}{name:<14}{value:>11.3f}{value / base:>9.4f}{divergence:>9.4f}{size:>7.2f}{seconds:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
