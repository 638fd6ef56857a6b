"""The arrows between the rooms: held by import contracts, by reading imports, and by starting fresh processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGINE = sorted((ROOT / "engine").rglob("*.py"))
QTUI = sorted((ROOT / "qtui").rglob("*.py"))

TORCH_FREE = [
    "engine", "engine.events.event", "engine.errors", "engine.recipe.spec", "engine.paths", "engine.events.cancellation",
    "engine.recipe.recipe", "engine.report.report", "engine.runs.rundir", "engine.models.registry", "engine.models.torchvision",
    "engine.models.cached", "engine.models.transform", "engine.data.registry", "engine.recipe.decisions", "engine.recipe.changes",
    "engine.planning.sensitivity", "engine.planning.search", "engine.recipe.targets",
    "engine.planning.planner", "engine.planning.rules", "engine.recipe.capabilities",
    "engine.recipe.threshold", "engine.models.language_registry", "engine.data.text.corpora",
    "engine.models.transformers_folder", "engine.data.text.documents", "engine.planning.legality", "engine.recipe.presets",
    "engine.planning.size", "engine.report.runtimes", "engine.report.doubt", "engine.report.steadiness", "engine.report.mismatch",
    "engine.export.registry", "engine.events.replay", "engine.runs.examine", "engine.plain_text", "engine.reading",
    "engine.report.figures", "engine.report.verdict", "engine.tasks.metrics", "engine.tasks.registry", "qtui", "qtui.cli",
    "qtui.__main__", "qtui.console", "qtui.doctor", "qtui.listing", "engine.machine.ranks", "engine.machine.usage",
]  # fmt: skip


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


@pytest.mark.parametrize("path", ENGINE + QTUI, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_stands_on_a_deprecated_quantization_package(path: Path) -> None:
    assert [n for n in imported(path) if within(n, ("torch.ao", "torchao"))] == []


def test_the_rooms_import_those_below_them_alone() -> None:
    """The contracts are in ``pyproject.toml``."""
    command = [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", TORCH_FREE)
def test_importing_it_does_not_load_torch(module: str) -> None:
    heavy = ("torch", "sklearn", "torchvision", "transformers")
    code = f"import sys, {module}; sys.exit(' '.join(m for m in {heavy} if m in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


# What shows figures without a terminal, and what decides without a screen.
WITHOUT_TEXTUAL = [
    "qtui/session.py", "qtui/state.py", "qtui/reducer.py", "qtui/messages.py", "qtui/mailbox.py", "qtui/engine_thread.py",
    "qtui/actions.py", "qtui/reasons.py", "qtui/subject.py", "qtui/catalog.py",
    "qtui/draft.py", "qtui/edits.py", "qtui/runs.py", "qtui/strategy_rules.py",
    "qtui/console.py", "qtui/cli.py", "qtui/machine_line.py", "qtui/follower.py",
]  # fmt: skip
# What draws may know of the engine: its words, not its work.
WORDS = (
    "engine.events.event", "engine.events.speed", "engine.recipe.decisions", "engine.recipe.spec", "engine.errors",
    "engine.events.cancellation", "engine.report.report", "engine.report.language", "engine.runs.rundir", "engine.events.replay",
    "engine.report.mismatch", "engine.recipe.recipe", "engine.recipe.changes", "engine.recipe.presets", "engine.planning.legality",
    "engine.planning.size", "engine.report.runtimes", "engine.report.doubt", "engine.report.steadiness", "engine.paths",
    "engine.models.registry", "engine.models.cached", "engine.models.size", "engine.models.torchvision", "engine.data.registry",
    "engine.data.images.cache", "engine.models.language_registry", "engine.data.text.corpora", "engine.export.registry",
    "engine.planning.rules", "engine.plain_text", "engine.reading", "engine.tasks.registry", "engine.recipe.number_formats",
    "engine.tasks.metrics", "engine.report.measures", "engine.report.changed", "engine.events.pictures", "engine.models.text_registry",
    "engine.planning.sensitivity", "engine.runs.keeping", "engine.events.rows", "engine.planning.search", "engine.recipe.targets",
    "engine.machine.ranks.place",
)  # fmt: skip
AT_WORK = {"qtui/engine_thread.py", "qtui/commands.py", "qtui/doctor.py", "qtui/against.py", "qtui/follower.py"}


@pytest.mark.parametrize("path", WITHOUT_TEXTUAL)
def test_the_state_and_its_commands_know_no_terminal(path: str) -> None:
    assert [n for n in imported(ROOT / path) if within(n, ("textual", "qtui.app", "qtui.screens", "qtui.widgets"))] in (
        [],
        ["qtui.app.main"],
    )


@pytest.mark.parametrize("path", sorted((ROOT / "qtui" / "drawing").glob("*.py")), ids=lambda p: p.name)
def test_drawing_is_text_alone(path: Path) -> None:
    assert [
        n
        for n in imported(path)
        if within(n, ("textual", "rich.console", "engine", "qtui.state", "qtui.screens", "qtui.widgets"))
        # What makes a text safe to show is one for the engine and the screens.
        and not within(n, ("engine.plain_text",))
    ] == []


@pytest.mark.parametrize("path", [p for p in QTUI if str(p.relative_to(ROOT)) not in AT_WORK], ids=lambda p: str(p.relative_to(ROOT)))
def test_screens_know_the_engines_words_and_not_its_work(path: Path) -> None:
    assert [n for n in imported(path) if within(n, ("engine",)) and not within(n, WORDS)] == []


@pytest.mark.parametrize("room", ["qtui/screens", "qtui/widgets"])
def test_a_screen_does_not_reach_for_the_engines_thread(room: str) -> None:
    reaching = {str(p.relative_to(ROOT)): n for p in (ROOT / room).rglob("*.py") for n in imported(p) if within(n, ("qtui.engine_thread",))}
    assert reaching == {}


def loaded_after(code: str, *unwanted: str) -> str:
    """Those of ``unwanted`` that a fresh process has imported after ``code``."""
    ask = f"import sys\n{code}\nprint(' '.join(m for m in {unwanted!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


def test_the_first_frame_needs_neither_torch_nor_what_reads_recipes() -> None:
    code = "import qtui.cli, qtui.app, qtui.screens.models\nqtui.app.QtuiApp()"
    assert (
        loaded_after(
            code, "torch", "numpy", "sklearn", "pydantic", "yaml", "qtui.session", "engine.events.event", "textual.widgets._data_table"
        )
        == ""
    )


def test_the_engine_never_loads_a_terminal() -> None:
    code = "import engine, engine.runs.pipeline, engine.api, engine.runs.examine, engine.events.replay"
    assert loaded_after(code, "textual", "rich", "qtui") == ""
