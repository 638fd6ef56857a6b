"""What a model costs against its original, against sums that are written out here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny_language
import torch
from tiny_language import finished

from engine.errors import UsageError
from engine.events.cancellation import StopToken
from engine.models.transformers_load import load_language
from engine.runs.compare_models import Comparison, compare
from qtui.__main__ import main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    tiny_language.write_folder(folder / "one")
    changed = tiny_language.gpt2()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
    tiny_language.write_folder(folder / "two", changed)
    (folder / "text.txt").write_text(tiny_language.sentences(400))
    return folder


def compared(place: Path, one: str = "one", two: str = "two", **options: Any) -> Comparison:
    data = options.pop("data", str(place / "text.txt"))
    found: Comparison = finished(compare(str(place / one), str(place / two), data, options.pop("limit", 320), StopToken()))
    return found


def test_figures_are_those_of_sums_in_float64(place: Path) -> None:
    found = compared(place)
    one, two = (load_language(str(place / name)) for name in ("one", "two"))
    from engine.data.text.encoded import TextData, load_text

    text = load_text(str(place / "text.txt"), one, StopToken())
    assert isinstance(text, TextData)
    stream = text.streams["test"][:320]
    losses, divergence, same = torch.zeros(2, dtype=torch.float64), 0.0, 0
    changes = []
    with torch.no_grad():
        for ids in torch.split(stream, tiny_language.CONTEXT):
            told = [model.logits(ids[None])[0, :-1].double().log_softmax(-1) for model in (one, two)]
            each = torch.stack([torch.nn.functional.nll_loss(part, ids[1:], reduction="sum") for part in told])
            losses += each
            changes.append(float(each[1] - each[0]) / (len(ids) - 1))
            divergence += float(torch.nn.functional.kl_div(told[1], told[0], log_target=True, reduction="sum"))
            same += int((told[0].argmax(1) == told[1].argmax(1)).sum())
    count = 320 - len(changes)
    assert found.tokens == count and found.windows == len(changes)
    assert found.perplexities == pytest.approx([math.exp(value / count) for value in losses.tolist()], rel=1e-5)
    assert found.divergence == pytest.approx(divergence / count, rel=1e-3) and found.agreement == pytest.approx(same / count)
    assert found.rise == pytest.approx(math.exp(float(losses[1] - losses[0]) / count) - 1, rel=1e-4)
    # Windows of one size: the interval is that of the mean of their differences.
    spread = torch.tensor(changes, dtype=torch.float64)
    half = 1.96 * float(spread.std() / math.sqrt(len(changes)))
    assert found.low is not None and found.high is not None
    assert math.log1p(found.high) - math.log1p(found.low) == pytest.approx(2 * half, rel=1e-6)
    assert found.low < found.rise < found.high and found.bytes[0] == (place / "one" / "model.safetensors").stat().st_size


def test_a_model_costs_nothing_against_itself(place: Path) -> None:
    found = compared(place, two="one")
    assert (found.rise, found.divergence, found.agreement) == (0, 0, 1) and found.low == found.high == 0


def test_models_that_read_other_tokens_are_refused(place: Path, tmp_path: Path) -> None:
    tiny_language.write_folder(tmp_path / "other")
    content = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:20]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="as other tokens"):
        compared(place, two=str(tmp_path / "other"))
    with pytest.raises(UsageError, match="limit of 1"):
        compared(place, limit=1)


def test_the_command_tells_it_in_a_table_and_as_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", str(place / "one"), str(place / "two"), "--data", str(place / "text.txt"), "--limit", "128"]
    assert main(arguments) == 0
    assert "the same next token" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["windows"] == 4 and found["tokens"] == 124 and len(found["perplexities"]) == 2
    assert main(["compare", str(place / "one"), str(place / "none.gguf")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
