"""``qtui run MODEL --against ORIGINAL``."""

from __future__ import annotations

from argparse import Namespace

import pytest

from qtui import against
from qtui.cli import dispatch


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Namespace]:
    """What was compared."""
    found: list[Namespace] = []
    monkeypatch.setattr(against, "compare", lambda args: found.append(args) or 0)
    return found


def test_a_run_against_an_original_judges_and_quantizes_nothing(judged: list[Namespace]) -> None:
    assert dispatch(["run", "model.gguf", "--against", "OWNER/MODEL", "--limit", "64", "--json"]) == 0
    (args,) = judged
    assert (args.original, args.other, args.data, args.limit, args.json) == ("OWNER/MODEL", "model.gguf", "python-docs", 64, True)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--preset", "w4"], "--preset is of a model that is quantized"),
        (["--export=gguf"], "--export is of a model that is quantized"),
        (["--limit", "0"], "--limit 0 is not 1 or more"),
    ],
)
def test_what_asks_for_quantization_is_refused_beside_it(
    judged: list[Namespace], capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert dispatch(["run", "model.gguf", "--against", "OWNER/MODEL", *more]) == 2
    assert said in capsys.readouterr().err and not judged


def test_a_model_is_named(judged: list[Namespace], capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["run", "--against", "OWNER/MODEL"]) == 2
    assert "no model: name one" in capsys.readouterr().err and not judged
