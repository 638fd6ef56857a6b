"""Rewrite the recording of the golden runs: ``uv run python tests/golden/record.py [CASE ...]``.

What other machines recorded stays where everything that is the same on all machines is as it was, and goes where it is not.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import golden_models  # noqa: E402
from golden_cases import CASES  # noqa: E402
from golden_runs import RECORDED, carry_out  # noqa: E402


def record(found: dict[str, Any], path: Path) -> None:
    machine = dict(found["machine"])
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    others = earlier.get("machines", {}) if earlier.get("everywhere") == found["everywhere"] else {}
    content = {"everywhere": found["everywhere"], "machines": {**others, machine.pop("class"): machine}}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(names: list[str], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        golden_models.write_inputs(folder)
        os.environ["QTUI_RUNS"] = str(folder / "runs")
        for case in CASES:
            if names and case.name not in names:
                continue
            begin = time.perf_counter()
            record(carry_out(case, folder), target / f"{case.name}.json")
            print(f"{case.name}: {time.perf_counter() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:], Path(os.environ.get("GOLDEN_TARGET") or RECORDED))
