"""Pictures of the screen kept as files: plain text for a readable difference, SVG for the colours of key screens.

``QTUI_SNAPSHOTS=update uv run pytest tests/qtui/app`` writes them anew; look at the difference before it is kept.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from app_driving import Driver

FOLDER = Path(__file__).parents[2] / "snapshots"


def check_text(driver: Driver, name: str) -> None:
    """The screen's text is that of ``snapshots/NAME-WxH.txt``; times in the log and paths are left out by the caller."""
    width, height = driver.app.size
    _compare(FOLDER / f"{name}-{width}x{height}.txt", driver.text + "\n")


def check_svg(driver: Driver, name: str) -> None:
    """The screen's colours and text are those of ``snapshots/NAME-WxH.svg``."""
    width, height = driver.app.size
    svg = driver.app.export_screenshot(title="qtui")
    # Rich derives ids from a hash of the content.
    svg = re.sub(r"terminal-\d+", "terminal", svg)
    _compare(FOLDER / f"{name}-{width}x{height}.svg", svg)


def _compare(path: Path, found: str) -> None:
    if os.environ.get("QTUI_SNAPSHOTS") == "update":
        FOLDER.mkdir(exist_ok=True)
        path.write_text(found, encoding="utf-8")
        return
    assert path.exists(), f"{path.name} does not exist: QTUI_SNAPSHOTS=update writes it"
    assert found == path.read_text(encoding="utf-8")
