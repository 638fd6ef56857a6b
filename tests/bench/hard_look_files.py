"""Files of a run, of a model and of its data, damaged at random: the command line and the app end in one line, at once."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import driving
import tiny_language
from app_driving import Driver
from app_driving import drive as drive_app
from scripted_engine import ScriptedEngine

import engine
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.plain_text import plain
from engine.recipe.recipe import Recipe
from engine.runs import pipeline
from qtui import actions
from qtui.cli import dispatch

STEERING = ("\x1b[2J", "\x1b]0;x\x07", "\u202e", "\u200b", "\u2066", "\x00", "\r", "\x9b31m", "\ud800")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 3.5, 10**400, -(10**20), "", "text", [], {}, [[[]]], [None], {"a": 1}, "\x1b[31mred", "\u202edcba",
    "/dev/zero", "../../x", [1] * 3000, "x" * 20000,
)  # fmt: skip
CODES = (0, 1, 2, 3, 130)


@cache
def whole() -> Path:
    """A folder with a finished run, the model of a run, its data and weights, and a language model: made once in a process."""
    place = Path(tempfile.mkdtemp(prefix="hard-look-"))
    (place / "tiny.py").write_text(driving.TINY)
    recipe = Recipe.make(
        model=f"{place / 'tiny.py'}:make", data={"calibration": 16, "limit": 16}, qat={"mode": "never"}, threshold="drop:0.9"
    )
    with driving.untimed():
        stop = StopToken()
        outcome = driving.consume(pipeline.run(recipe, place / "runs" / "one", stop), stop)
    assert outcome.error is None, outcome.error
    _weights(place)
    _images(place / "images")
    tiny_language.write_folder(place / "decoder")
    (place / "text.txt").write_text(tiny_language.sentences(200))
    return place


def prepare() -> None:
    whole()


def _weights(place: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from engine.user_code import made

    state = made(f"{place / 'tiny.py'}:make", "model").state_dict()
    torch.save({"model": state, "epoch": 3}, place / "weights.pt")
    save_file(state, place / "weights.safetensors")


def _images(place: Path) -> None:
    from PIL import Image

    dice = random.Random(0)
    for split in ("train", "test"):
        for label in range(3):
            (folder := place / split / f"class{label}").mkdir(parents=True)
            for i in range(4):
                Image.frombytes("RGB", (32, 32), dice.randbytes(32 * 32 * 3)).save(folder / f"{i}.png")


def _bytes(r: random.Random, path: Path) -> str:
    content = bytearray(path.read_bytes())
    how = r.choice(["cut", "flip", "insert", "zeros", "empty", "twice", "noise"])
    at = r.randrange(len(content) + 1)
    if how == "cut":
        content = content[:at]
    elif how == "flip":
        for _ in range(r.choice([1, 1, 8, 100])):
            if content:
                content[r.randrange(len(content))] ^= 1 << r.randrange(8)
    elif how == "insert":
        content[at:at] = r.choice(
            [b"\x00", b"[" * 5000, b"\xff\xfe", b"}", r.randbytes(50), *(s.encode("utf-8", "surrogatepass") for s in STEERING)]
        )
    elif how == "zeros":
        content[at:] = bytes(len(content) - at)
    elif how == "empty":
        content = bytearray()
    elif how == "twice":
        content += bytes(content)
    else:
        content = bytearray(r.randbytes(200))
    path.write_bytes(content)
    return how


def _json(r: random.Random, path: Path) -> str:
    """A value at a random place of a JSON file, or of a line of one, or of a safetensors header, is another."""
    text = path.read_text(errors="replace")
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    try:
        at = r.randrange(len(lines))
        value = json.loads(lines[at])
    except (ValueError, IndexError):
        return _bytes(r, path)
    for _ in range(r.choice([1, 1, 1, 3])):
        _replaced(r, value)
    lines[at] = json.dumps(value)
    path.write_text("\n".join(lines))
    return "value"


def _replaced(r: random.Random, value: Any) -> None:
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
        if not keys:
            return
        key = r.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and r.random() < 0.7:
            value = value[key]
            continue
        how = r.random()
        if how < 0.15:
            del value[key]
        elif how < 0.25 and isinstance(value, dict):
            value[r.choice(STEERING[:-1]) + str(key)] = value.pop(key)
        elif how < 0.4 and isinstance(value[key], str):
            value[key] = value[key][:3] + r.choice(STEERING[:-1]) + value[key][3:]
        else:
            value[key] = r.choice(VALUES)
        return


def _yaml(r: random.Random, path: Path) -> str:
    lines = path.read_text().splitlines()
    at = r.randrange(len(lines))
    key = lines[at].partition(":")[0]
    lines[at] = r.choice([
        f"{key}: {json.dumps(r.choice(VALUES))[:5000]}", lines[at] + "x", " " * r.randrange(5) + lines[at], f"{key}: *a",
        f"{key}: &a [*a, *a]",
        f"{key}: !!python/object/apply:os.system ['true']", f"{key}: 1e999", "[" * 3000, f"{key}: {r.choice(STEERING[:2])}", "",
    ])  # fmt: skip
    path.write_text("\n".join(lines), errors="replace")
    return "line"


def _placed(r: random.Random, path: Path) -> str:
    how = r.choice(["fifo", "device", "folder", "loop", "huge", "gone", "deep", "locked"])
    path.unlink()
    if how == "fifo":
        os.mkfifo(path)
    elif how == "device":
        path.symlink_to(r.choice(["/dev/zero", "/dev/full", "/dev/tty", "/dev/random"]))
    elif how == "folder":
        path.mkdir()
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "huge":
        with path.open("wb") as file:
            file.truncate(3_000_000_000)
    elif how == "deep":
        path.write_text('{"a":' * 3000 + "1" + "}" * 3000)
    elif how == "locked":
        path.write_bytes(b"{}")
        path.chmod(0)
    return how


def damage(r: random.Random, path: Path) -> str:
    kinds: list[Callable[[random.Random, Path], str]] = [_bytes, _bytes, _placed]
    if path.suffix in (".json", ".jsonl"):
        kinds += [_json] * 6
    if path.suffix == ".yaml":
        kinds += [_yaml] * 4
    return f"{path.name}: {r.choice(kinds)(r, path)}"


def _command(r: random.Random, place: Path, what: str) -> list[str]:
    run = str(place / "runs" / "one")
    if what == "run":
        return r.choice([
            ["runs", str(place / "runs")], ["show", run], ["show", run, "--json"], ["export", run, "--to", "safetensors", "--force"],
            ["export", run, "--to", "onnx", "--force"], ["resume", run],
            ["run", "--recipe", f"{run}/recipe.yaml", "--out", str(place / "new"), "--yes"],
        ])  # fmt: skip
    small = ["--limit", "16", "--out", str(place / "new"), "--yes", "--qat", "never"]
    if what == "decoder":
        return ["run", str(place / "decoder"), "--data", str(place / "text.txt"), *small]
    model = ["run", f"{place / 'tiny.py'}:make"]
    if what == "images":
        return [*model, "--data", str(place / "images"), *small]
    return [*model, "--weights", str(place / what), *small]


PARTS = {
    "run": ("report.json", "state.json", "events.jsonl", "recipe.yaml", "model.safetensors"),
    "decoder": ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"),
}


def _victims(r: random.Random, place: Path, what: str) -> list[Path]:
    if what in PARTS:
        folder = place / "runs" / "one" if what == "run" else place / "decoder"
        return [path for name in r.sample(PARTS[what], r.choice([1, 1, 2])) if (path := folder / name).exists()]
    if what == "images":
        return r.sample(sorted((place / "images").rglob("*.png")), 1)
    return [place / what]


def look(seed: int) -> tuple[str, str]:
    """The outcome of a case, ``fine`` or what kind of find it is, and what is to be said of it."""
    r = random.Random(seed)
    what = r.choice(["run"] * 6 + ["decoder", "decoder", "images", "weights.pt", "weights.safetensors", "text.txt"])
    with tempfile.TemporaryDirectory() as held:
        place = Path(held) / "p"
        shutil.copytree(whole(), place)
        if what == "text.txt":
            damaged = [damage(r, place / "text.txt")]
            command = _command(r, place, "decoder")
        else:
            damaged = [damage(r, path) for path in _victims(r, place, what)]
            command = _command(r, place, what)
        about = f"{damaged} {' '.join(command)}".replace(held, "")
        try:
            said = _dispatched(command)
            if what == "run" and said is None and r.random() < 0.3:
                said = _loaded(place / "runs" / "one")
        finally:
            for path in place.rglob("*"):
                if not path.is_symlink() and path.is_file():
                    path.chmod(0o600)
        return (said[0], f"{said[1]} | {about}") if said else ("fine", about)


def _dispatched(command: list[str]) -> tuple[str, str] | None:
    out, err = io.StringIO(), io.StringIO()
    with driving.untimed(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = dispatch(command)
    text, lines = out.getvalue() + err.getvalue(), err.getvalue().splitlines()
    if code not in CODES:
        return "exit code", f"{code}: {text[-300:]}"
    if "Traceback" in text or "the traceback is in" in text:
        return "traceback", text[-500:]
    if plain(text.replace("\r", "\n")) != text.replace("\r", "\n"):
        odd = sorted({c for c in text if plain(c) != c and c != "\r"})
        return "raw characters", f"{odd} in {text[-200:]!r}"
    errors = [line for line in lines if line.startswith("error: ")]
    if code in (1, 2) and (len(errors) != 1 or len(errors[0]) > 1000):
        return "no line", f"{code}: {lines[-3:]}"
    return None


def _loaded(folder: Path) -> tuple[str, str] | None:
    try:
        engine.load_quantized(folder)
    except EngineError as error:
        return ("raw characters", repr(str(error))) if plain(str(error)) != str(error) else None
    return None


def look_in_the_app(seed: int) -> tuple[str, str]:
    """Damaged runs in the app: listed, opened, compared, with keys at random."""
    r = random.Random(seed)
    keys = sorted({key for action in actions.every() for key in action.keys} - {"q", "ctrl+q", "ctrl+c"}) + ["down", "enter", "escape", "n"]
    with tempfile.TemporaryDirectory() as held:
        place, about = Path(held) / "p", []
        runs = place / "runs"
        for i in range(6):
            shutil.copytree(whole() / "runs" / "one", runs / f"run{i}")
            if i:
                names = r.sample(PARTS["run"][:4], r.choice([1, 2]))
                about += [f"{i} {damage(r, runs / f'run{i}' / name)}" for name in names]
        pressed: list[str] = []
        os.environ |= {"QTUI_CACHE": str(place / "cache"), "QTUI_RUNS": str(runs), "TERM": "xterm-256color"}

        async def script(driver: Driver) -> None:
            for i in r.sample(range(6), 3):
                driver.app.session.open(runs / f"run{i}")
                await driver.pilot.pause(0.1)
                for _ in range(12):
                    pressed.append(key := r.choice(keys))
                    driver.type(key)
                    await driver.pilot.pause()
                    assert driver.app.is_running and driver.app._exception is None
                shown = driver.text
                assert plain(shown) == shown, f"raw characters: {[c for c in shown if plain(c) != c][:5]}"
                for _ in range(4):
                    driver.type("escape")
                    await driver.pilot.pause()

        old = os.getcwd()
        os.chdir(place)
        try:
            drive_app(ScriptedEngine(runs), script)
        except Exception as error:
            where = _innermost(error)
            return "app", f"{type(error).__name__}: {str(error)[:300]} {where} | {about} {pressed[-8:]}"
        finally:
            os.chdir(old)
            for path in place.rglob("*"):
                if not path.is_symlink() and path.is_file():
                    path.chmod(0o600)
    return "fine", ""


def _innermost(error: BaseException) -> str:
    import traceback

    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/qtui/" in f.filename or "/engine/" in f.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
