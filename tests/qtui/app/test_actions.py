"""The one table of keys is whole, and every front of it agrees."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from qtui import actions
from qtui.app import QtuiApp
from qtui.screens import make
from qtui.stage_table import ids, registry
from qtui.state import State

README = Path(__file__).parents[3] / "qtui" / "README.md"


@pytest.mark.parametrize("stage", ids())
def test_every_action_of_a_screen_has_its_method(stage: str) -> None:
    screen = make(stage)
    missing = [a.id for a in actions.own(stage) if not hasattr(screen, f"do_{a.id}")]
    missing += [a.id for a in actions.everywhere() if not a.goes and not hasattr(QtuiApp, f"do_{a.id}")]
    assert missing == []


@pytest.mark.parametrize("stage", ids())
def test_no_key_means_two_things_on_a_screen(stage: str) -> None:
    counted = Counter(key for action in actions.of(stage) for key in action.keys)
    assert [key for key, times in counted.items() if times > 1] == []


@pytest.mark.parametrize("stage", ids())
def test_the_footer_has_six_keys_at_most_with_help_first_and_the_way_on_last(stage: str) -> None:
    shown = actions.footer(stage)
    assert 2 <= len(shown) <= 6 and shown[0].id == "help" and shown[-1].id == "next" and shown[-1].label.endswith("▸")
    assert sum(len(actions.key_text(a.keys[0])) + len(a.label) + 4 for a in shown) <= 80


def test_keys_that_terminals_eat_are_not_used() -> None:
    eaten = {"ctrl+m", "ctrl+j", "ctrl+i", "ctrl+h"}
    assert [a.id for a in actions.every() for key in a.keys if key in eaten or key.startswith("alt+")] == []


def test_every_reason_is_a_sentence_in_an_empty_state() -> None:
    for action in actions.every():
        reason = action.why_not(State())
        assert reason is None or (reason[0].isupper() and len(reason) < 150), action.id


def test_the_readme_has_this_table() -> None:
    titles = [*((stage.id, stage.title) for stage in registry()), *actions.OVER.items()]
    assert actions.markdown(titles) in README.read_text(encoding="utf-8")
