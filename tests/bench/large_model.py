"""A decoder of seven billion random parameters, quantized block by block: how much memory the walk takes, and how long it takes.

    uv run python tests/bench/large_model.py make FOLDER              # 14 GB of shards, made tensor by tensor
    uv run python tests/bench/large_model.py run FOLDER OUT           # W4 in groups of 64, nearest, the whole run
    uv run python tests/bench/large_model.py blocks FOLDER OUT -n 4   # the same with GPTQ on the first blocks alone

``run`` is `qtui run` in a process of its own, whose largest resident set the system tells (ru_maxrss, the VmHWM of /proc/PID/status).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.numerics.tensor_file import Pending, write_files

# LLaMA 2 of 7 B has 32 blocks; two more make it over seven billion.
WIDTH, INNER, HEADS, ROWS, DEPTH = 4096, 11008, 32, 32000, 34
SEQUENCES, TOKENS = 4, 96
RECIPE = """model: {folder}
data: {{name: {ids}, calibration: 2}}
preset: w4
rules:
  - match: model.layers.*
    weights: {{bits: 4, granularity: per-group, group_size: 64, symmetric: false, method: {method}}}
qat: {{mode: never}}
stream: true
"""


def make(folder: Path, depth: int) -> None:
    """The folder of the model, in bfloat16, and sequences of token ids."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Pending:
        return Pending(torch.bfloat16, shape, lambda: torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=draw))

    def ones() -> Pending:
        return Pending(torch.bfloat16, (WIDTH,), lambda: torch.ones(WIDTH, dtype=torch.bfloat16))

    tensors = {"model.embed_tokens.weight": random(ROWS, WIDTH)}
    for number in range(depth):
        at = f"model.layers.{number}"
        tensors |= {f"{at}.self_attn.{name}_proj.weight": random(WIDTH, WIDTH) for name in "qkvo"}
        tensors |= {f"{at}.mlp.{name}_proj.weight": random(INNER, WIDTH) for name in ("gate", "up")}
        tensors |= {f"{at}.mlp.down_proj.weight": random(WIDTH, INNER)}
        tensors |= {f"{at}.{name}_layernorm.weight": ones() for name in ("input", "post_attention")}
    tensors |= {"model.norm.weight": ones(), "lm_head.weight": random(ROWS, WIDTH)}
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "num_hidden_layers": depth, "vocab_size": ROWS, "dtype": "bfloat16",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    ids = torch.randint(3, ROWS, (SEQUENCES, TOKENS), generator=draw).tolist()
    (folder / "ids.json").write_text(json.dumps(ids))
    start = time.perf_counter()
    names = write_files(folder, tensors, {"format": "pt"})
    numbers = sum(torch.Size(pending.shape).numel() for pending in tensors.values())
    print(f"{numbers:,} parameters in {len(names)} files, {time.perf_counter() - start:.0f} s")


def run(folder: Path, out: Path, method: str, more: list[str]) -> None:
    """The whole run; its peak memory and time."""
    recipe = out.with_suffix(".yaml")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(RECIPE.format(folder=folder, ids=folder / "ids.json", method=method))
    # What an earlier one has finished is taken over.
    again = (out / "state.json").exists()
    words = ["resume", str(out)] if again else ["run", "--recipe", str(recipe), "--out", str(out)]
    command = [sys.executable, "-m", "qtui", *words, "--yes", *more]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    took, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print("\n".join((done.stdout + done.stderr).splitlines()[-6:]))
    print(f"rc {done.returncode}, peak {peak / 1e9:.2f} GB ({peak / 2**30:.2f} GiB), {took:.0f} s, {threads()}")
    print(" ".join(command))


def blocks(folder: Path, out: Path, method: str, count: int) -> None:
    """The first ``count`` blocks by ``method``, in this process."""
    from engine.events.cancellation import StopToken
    from engine.kernels.matrix.choose import labels
    from engine.kernels.probe import probe
    from engine.lowering.modules.layers import plan
    from engine.lowering.modules.walk import Texts, walk
    from engine.machine.memory import peak
    from engine.models.anatomy import anatomy
    from engine.models.shards import shards_of
    from engine.models.transformers_folder import look
    from engine.models.unread import unread
    from engine.recipe.spec import LayerSpec, Rule, WeightSpec

    found = look(folder)
    model, source = unread(found, shards_of(found.weights))
    spec = LayerSpec(WeightSpec(4, "per-group", 64, symmetric=False, method=method), None)
    machine = probe()
    rows = plan(model, anatomy(model), "w4", [Rule("model.layers.*", spec)], {}, labels(machine)).layers
    ids = [torch.tensor(row) for row in json.loads((folder / "ids.json").read_text())]
    times: list[float] = []
    start = last = time.perf_counter()
    steps = walk(model, source, rows, Texts(ids[:2], 2, ids[2:]), machine, StopToken(), out / "blocks", last=count)
    for event in steps:
        name = getattr(event, "name", "")
        if name.endswith("down_proj"):
            now = time.perf_counter()
            times.append(now - last)
            last = now
            print(f"{name}: {times[-1]:.1f} s, peak {(peak() or 0) / 1e9:.2f} GB", flush=True)
    depth = int(model.config.num_hidden_layers)
    whole = time.perf_counter() - start
    each = sum(times[1:]) / max(len(times) - 1, 1)
    print(f"{count} blocks by {method}: {whole:.0f} s, peak {(peak() or 0) / 1e9:.2f} GB, {threads()}")
    print(f"extrapolated to {depth} blocks, {each:.1f} s each: {each * depth / 60:.0f} minutes")


def threads() -> str:
    return f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}, load {os.getloadavg()[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "run", "blocks", "remove"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("-n", type=int, default=4, help="blocks")
    parser.add_argument("--depth", type=int, default=DEPTH)
    parser.add_argument("--method")
    args, more = parser.parse_known_args()
    chosen: dict[str, Callable[[], Any]] = {
        "make": lambda: make(args.folder, args.depth),
        "run": lambda: run(args.folder.resolve(), args.out, args.method or "nearest", more),
        "blocks": lambda: blocks(args.folder, args.out, args.method or "gptq", args.n),
        "remove": lambda: shutil.rmtree(args.folder),
    }
    chosen[args.what]()


if __name__ == "__main__":
    main()
