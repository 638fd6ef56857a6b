"""What comes from outside and is shown steers no terminal."""

from __future__ import annotations

import json

import pytest

from engine.errors import EngineError, one_line
from engine.plain_text import escaped_json, plain
from engine.report.report import Report
from qtui.cli import _complain
from qtui.drawing.text import safe

STEERING = [
    "\x1b", "\x00", "\x7f", "\x9b", "\u202e", "\u202a", "\u2066", "\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u061c", "\ue000",
    "\ud800", "\U000e0041", "\u2028", "\u3164", "\u034f", "\uffff",
]  # fmt: skip


@pytest.mark.parametrize("c", STEERING)
def test_nothing_that_steers_or_hides_is_shown(c: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plain(f"a{c}b") == "a?b" and one_line(ValueError(f"a{c}b")) in ("a?b", "a b")
    assert c not in safe(f"a{c}b")
    _complain(EngineError(f"a{c}b"))
    assert c not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["plain", "é ü 漢字 — … ×", "a\tb\nc", "🙂", "עברית", "नमस्ते", "⣿▁█│●"])
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


def test_spaces_of_any_width_are_plain_ones_and_variants_of_a_glyph_are_one() -> None:
    assert plain("1\u00a0000\u2009x") == "1 000 x" and plain("❤\ufe0f") == "❤"


@pytest.mark.parametrize("c", STEERING)
def test_json_keeps_the_value_and_shows_its_escape(c: str) -> None:
    text = escaped_json(json.dumps({"name": f"a{c}é"}, ensure_ascii=False))
    assert json.loads(text) == {"name": f"a{c}é"} and (c not in text) and "é" in text
    assert c not in Report({"a": c}).to_json()
