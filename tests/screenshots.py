"""Pictures of every screen from a real run of the app, and the table of keys in qtui/README.md.

    uv run python tests/screenshots.py [--size 110x32] [--out screenshots] [--only vision|language] [--keys qtui/README.md]

Each picture is an SVG that needs no network: the terminal's text in the reader's monospace font.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
START, END = "<!-- keys -->", "<!-- /keys -->"


class Camera:
    """Presses keys, waits for the state, takes pictures."""

    def __init__(self, app, pilot, out: Path) -> None:  # type: ignore[no-untyped-def]
        self.app, self.pilot, self.out = app, pilot, out

    async def until(self, true: Callable[[object], object], seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while not true(self.app.state):
            if time.monotonic() > end:
                raise SystemExit(f"not there after {seconds} s: {self.app.state.job} {self.app.state.problem}")
            await self.pilot.pause(0.05)
        await self.pilot.pause(0.4)

    async def shot(self, name: str) -> None:
        await self.pilot.pause(0.3)
        svg = self.app.export_screenshot(title="qtui")
        svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S)
        # Some renderers drop spaces at the beginning of a text.
        svg = svg.replace("<svg ", '<svg xml:space="preserve" ', 1)
        svg = re.sub(r"terminal-\d+", "t", svg).replace("Fira Code", "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas")
        (self.out / f"{name}.svg").write_text(svg, encoding="utf-8")
        print(f"{self.out / name}.svg")


async def tour(camera: Camera) -> None:
    """SimpleCNN on digits, from the first screen to the comparison of runs."""
    press: Callable[..., Awaitable[None]] = camera.pilot.press
    await camera.until(lambda s: s.machine)
    await press("enter")
    await camera.until(lambda s: s.asking == "optimize")
    await camera.shot("graph")
    await press("f")
    await camera.until(lambda s: s.asking == "quantize")
    await camera.shot("graph-folded")
    await press("n")
    await press("j", "j", "j", "w", "k")
    await camera.shot("strategy")
    await press("e")
    await camera.until(lambda s: s.run.sensitivity is not None and s.asking == "quantize")
    await press("plus")
    await camera.shot("sensitivity")
    await press("escape", "n")
    await camera.until(lambda s: s.asking == "qat")
    await press("v")
    await camera.shot("calibrate")
    await press("v")
    await camera.shot("measured")
    await press("t")
    await camera.until(lambda s: len(s.run.training.epochs) >= 3)
    await press("p")
    await camera.shot("train")
    await press("p")
    await camera.until(lambda s: s.run.report)
    await camera.shot("report")
    for preset in (("down",), ("down", "down", "down")):
        await again(camera, preset)
    await press("c")
    await camera.shot("compare")
    await press("escape", "1")
    await camera.shot("models")
    await press("question_mark")
    await camera.shot("help")


async def again(camera: Camera, preset: tuple[str, ...]) -> None:
    """One more run, with a preset, so that there is something to compare."""
    press = camera.pilot.press
    await press("1", "enter")
    await camera.until(lambda s: s.asking == "optimize")
    await press("n")
    await camera.until(lambda s: s.asking == "quantize")
    await press("p", *preset, "enter")
    await camera.until(lambda s: s.asking == "quantize" and s.run.plan.preset != "default")
    await press("n")
    await camera.until(lambda s: s.asking == "qat")
    await press("n")
    await camera.until(lambda s: s.run.report and not s.job)


async def language(camera: Camera) -> None:
    """gpt2-mini in four bits, from the list of models to the report."""
    press = camera.pilot.press
    await camera.until(lambda s: s.machine)
    await press("slash", *"gpt2-mini", "enter", "enter")
    await camera.until(lambda s: s.asking == "quantize")
    await press("p", *["down"] * 5, "enter")
    await camera.until(lambda s: s.asking == "quantize" and s.run.plan.preset == "w4")
    # Larger groups for one matrix of all blocks.
    await press(*["j"] * 9, "b", "c", "k", "j")
    await camera.shot("language-strategy")
    await press("n")
    await camera.until(lambda s: s.asking == "qat")
    await camera.shot("language-measured")
    await press("w")
    await camera.shot("language-samples")
    await press("escape", "n")
    await camera.until(lambda s: s.run.report and not s.job)
    await camera.shot("language-report")


TOURS = {"vision": tour, "language": language}


async def take(size: tuple[int, int], out: Path, name: str) -> None:
    from qtui.app import QtuiApp

    app = QtuiApp()
    try:
        async with app.run_test(size=size) as pilot:
            await TOURS[name](Camera(app, pilot, out))
    finally:
        app.close_session()


def write_keys(readme: Path) -> None:
    """Put the table of keys between its marks."""
    from qtui import actions
    from qtui.stage_table import registry

    text = readme.read_text(encoding="utf-8")
    before, after = text.partition(START)[0], text.partition(END)[2]
    table = actions.markdown([*((stage.id, stage.title) for stage in registry()), *actions.OVER.items()])
    readme.write_text(f"{before}{START}\n{table}{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="110x32")
    parser.add_argument("--out", type=Path, default=ROOT / "screenshots")
    parser.add_argument("--only", choices=tuple(TOURS), action="append", help="a tour alone; without it all are made")
    parser.add_argument("--keys", type=Path)
    args = parser.parse_args()
    if args.keys:
        write_keys(args.keys)
        return
    for name in ("NO_COLOR", "SSH_CONNECTION", "SSH_TTY", "SSH_CLIENT", "QTUI_THEME"):
        os.environ.pop(name, None)
    os.environ["COLORTERM"] = "truecolor"
    width, height = map(int, args.size.split("x"))
    args.out.mkdir(parents=True, exist_ok=True)
    out = args.out.resolve()
    os.environ.pop("QTUI_RUNS", None)
    for name in args.only or TOURS:
        # Each in a folder of its own: runs of one tour are no part of the other's pictures.
        with tempfile.TemporaryDirectory() as place:
            os.chdir(place)
            asyncio.run(take((width, height), out, name))
            os.chdir(ROOT)


if __name__ == "__main__":
    main()
