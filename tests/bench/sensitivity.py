"""How well the estimated harm of each layer ranks the real one: Spearman's correlation with the drop that is measured where that layer
alone is rounded, and what the estimate costs.

usage: uv run python tests/bench/sensitivity.py MODEL [--weights FILE] [--data DIR] [--imagenet-statistics] [--candidates w4,w3,w2]
                                                [--split test] [--items 2000] [--state DIR]

MODEL is what ``qtui run`` takes. Each drop is of the fp32 network with one candidate rounded, in floats; figures are kept in ``--state``
and a bench that is stopped goes on. ``--only-estimate`` tells the time alone. Prints a table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from engine.events.cancellation import StopToken
from engine.events.event import Notice
from engine.kernels.probe import probe
from engine.lowering import sensitivity
from engine.lowering.registry import lowering_of
from engine.planning.sensitivity import Sensitivity
from engine.recipe.recipe import Recipe
from engine.recipe.threshold import Threshold
from engine.tasks.registry import task_of


class Context:
    """A run that answers every question with yes."""

    attended = False

    def __init__(self, recipe: Recipe, directory: Path) -> None:
        self.recipe, self.machine, self.stop, self.directory = recipe, probe(), StopToken(), directory
        self.threshold, self.identity = Threshold.parse(recipe.threshold), recipe.fingerprint()

    def stage(self, name: str, title: str, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        return (yield from steps)

    def ask(self, key: Any, question: str, needed: bool = False, default: bool = True) -> Generator[Any, Any, Any]:
        yield from ()
        return default

    def change(self, recipe: Recipe) -> Generator[Any, Any, None]:
        self.recipe = recipe
        yield from ()

    def keep(self, recipe: Recipe) -> None:
        self.recipe = recipe


def drain(steps: Generator[Any, Any, Any]) -> Any:
    """The result of a stage; what it costs is said, the rest passed over."""
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            return end.value
        if isinstance(event, Notice) and "candidates" in event.text:
            print(event.text, file=sys.stderr, flush=True)


def correlation(pairs: list[tuple[float, float]]) -> str:
    if len(pairs) < 3 or len({drop for _, drop in pairs}) < 2:
        return "–"
    return f"{spearmanr([a for a, _ in pairs], [b for _, b in pairs]).statistic:.3f}"


def show(found: list[Sensitivity], drops: dict[tuple[str, str], float], names: list[str]) -> None:
    """The table: of each candidate, of several together, and of those whose drop is no chance."""
    first = found[0]
    print("\n| candidates | layers | estimate | spread over seeds | own SQNR | median drop |\n|---|---:|---:|---:|---:|---:|")
    # Below half a point the drop of a single layer is mostly chance: as many answers become right as wrong.
    clear = {key for key, drop in drops.items() if abs(drop) >= 0.005}
    for group in [*[[name] for name in names], [n for n in names if n[0] == "w"], [n for n in names if n[0] == "a"], names, None]:
        if group == []:
            continue
        chosen = clear if group is None else {key for key in drops if key[1] in group}
        several = []
        for one in found:
            pairs = [(row.loss_increase, drops[row.path, row.candidate]) for row in one.layers if (row.path, row.candidate) in chosen]
            several.append(correlation(pairs))
        noise = [(-row.noise_db, drops[row.path, row.candidate]) for row in first.layers if (row.path, row.candidate) in chosen]
        middle = sorted(drops[key] for key in chosen)
        if middle:
            spread, half = f"{min(several)} to {max(several)}", middle[len(middle) // 2]
            name = "those that lose half a point or more" if group is None else ", ".join(group)
            print(f"| {name} | {len(pairs)} | {several[0]} | {spread} | {correlation(noise)} | {half:.4f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--task")
    parser.add_argument("--weights")
    parser.add_argument("--data")
    parser.add_argument("--imagenet-statistics", action="store_true", help="normalize by ImageNet's mean and deviation")
    parser.add_argument("--candidates", default="w4,w3,w2", help="some of w8,w6,w4,w3,w2,a8,a7,a6,a4,a3,a2")
    parser.add_argument("--split", default="test")
    parser.add_argument("--items", type=int, help="no more items of the split")
    parser.add_argument("--state", help="folder that keeps what was measured")
    parser.add_argument("--only-estimate", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data: dict[str, Any] = {"name": arguments.data} if arguments.data else {}
    if arguments.imagenet_statistics:
        data |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    asked = {"model": arguments.model, **({"weights": arguments.weights} if arguments.weights else {}), **({"data": data} if data else {})}
    recipe = Recipe.make(**asked, **({"task": arguments.task} if arguments.task else {}), slower=[])
    entry = task_of(recipe.model, recipe.task)
    recipe = entry.settled(recipe)
    directory = Path(arguments.state or tempfile.mkdtemp())
    context = Context(recipe, directory)
    subject = drain(entry.load(recipe, context.stop, "cpu"))
    context.recipe = subject.task.settled(recipe)
    lowering = lowering_of(subject, context)
    drain(lowering.capture())
    plan = drain(lowering.plan())
    begun, worked = time.perf_counter(), time.process_time()
    found = [drain(lowering.sensitivity(plan))]
    seconds, worked = time.perf_counter() - begun, time.process_time() - worked
    first = found[0]
    print(f"{arguments.model}: {len(first.paths)} layers, {len(first.layers)} candidates, {first.items} items, basis {first.basis}")
    print(f"estimate: {seconds:.1f} s on {arguments.threads} threads, {worked:.1f} s of the processor", flush=True)
    if arguments.only_estimate:
        return
    model = lowering.sensitive(plan)
    assert model is not None
    task = subject.task
    for seed in range(1, arguments.seeds):
        found.append(drain(sensitivity.estimate(model, task, recipe.data.calibration, context.stop, seed)))
    names = arguments.candidates.split(",")
    wanted = [(one.path, one.candidate) for one in first.layers if one.candidate in names]
    if arguments.items is not None:
        everything, most = task.batches, arguments.items
        task.batches = lambda split, *, batch, limit=None, seed=None, device="cpu": everything(
            split, batch=batch, limit=most if split == arguments.split else limit, seed=seed, device=device
        )
    identity = f"{subject.fingerprint} {arguments.split} {arguments.items}"
    steps = sensitivity.measure(model, task, first, directory, context.stop, 250, identity, wanted, arguments.split)
    measured = drain(steps)
    drops = {(one.path, one.candidate): one.drop for one in measured.layers if one.drop is not None}
    show(found, drops, names)


if __name__ == "__main__":
    main()
