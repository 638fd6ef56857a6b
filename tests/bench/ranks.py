"""What a second process brings: one run on one and on two ranks, at one thread each.

    uv run python tests/bench/ranks.py [--ranks 1 2] [--calibration 512] [--epochs 1]

Each row is the seconds that a stage of the run took, by its own events. Starting the processes is not counted: torch takes seconds
to import, in each of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAGES = ("calibrate", "convert", "evaluate", "qat")


def seconds(count: int, folder: Path, command: Sequence[str]) -> dict[str, float]:
    """Of each stage, on ``count`` ranks with one thread each."""
    code = "import sys; from torch.distributed.run import main; main(sys.argv[1:])"
    launch = [sys.executable, "-c", code, f"--nproc-per-node={count}", "--standalone", "-m", "qtui", *command, "--out", str(folder)]
    subprocess.run(launch, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, float] = {}
    for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "StageFinished" and event["stage"] in STAGES:
            found[event["stage"]] = found.get(event["stage"], 0.0) + event["seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--model", default="simplecnn")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--calibration", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        recipe = Path(place) / "recipe.yaml"
        recipe.write_text(
            f"model: {args.model}\npreset: w4a8\ndata: {{name: {args.data}, calibration: {args.calibration}}}\n"
            f"rules: [{{match: '*', weights: {{bits: 4, method: gptq}}, activations: {{bits: 8, observer: histogram-mse}}}}]\n"
            f"qat: {{mode: always, epochs: {args.epochs}, batch: 128}}\n"
        )
        command = ["run", "--recipe", str(recipe), "--yes"]
        rows = {count: seconds(count, Path(place) / str(count), command) for count in args.ranks}
    first = rows[args.ranks[0]]
    print("| stage | " + " | ".join(f"{count} rank{'' if count == 1 else 's'}" for count in rows) + " |")
    print("|---|" + "---:|" * len(rows))
    for stage in STAGES:
        if stage in first:
            cells = [f"{found[stage]:.1f} s ({first[stage] / max(found[stage], 1e-9):.2f}×)" for found in rows.values()]
            print(f"| {stage} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
