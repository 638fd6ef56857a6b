"""What ships: gpt2-mini loads from the package without a network, is small, and has learned English."""

from __future__ import annotations

import tiny_language
import torch

from engine.events.cancellation import StopToken
from engine.models.language_registry import ENTRIES
from engine.models.registry import WEIGHTS
from engine.models.transformers_load import load_language
from engine.tasks.generation import continuation
from engine.tasks.perplexity import sequence_perplexity

PROSE = """The function returns a new list that holds the names of all files in the given directory. If the path does not exist, an
error is raised, and nothing is returned to the caller. The optional argument tells whether the names are sorted before they are used.
"""


def test_gpt2_mini_ships_small_and_with_its_record() -> None:
    entry = ENTRIES["gpt2-mini"]
    assert entry.where == "package" and sum(path.stat().st_size for path in (WEIGHTS / "gpt2-mini").iterdir()) < 8_000_000
    record = entry.record()
    assert record["command"] == "uv run qtui train gpt2-mini" and record["seed"] == 0
    assert [told["stride"] for told in record["test"]] == [512, 256] and 20 < entry.perplexity()["python-docs"] < 90


def test_gpt2_mini_has_learned_english() -> None:
    found = load_language("gpt2-mini")
    assert (found.source, found.context, found.params) == ("package", 512, ENTRIES["gpt2-mini"].params)
    ids = torch.tensor(found.tokenizer(PROSE.replace("\n", " "))["input_ids"])
    told = tiny_language.finished(sequence_perplexity(found.logits, [ids], stop=StopToken()))
    drawn = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
    shuffled = tiny_language.finished(sequence_perplexity(found.logits, [drawn], stop=StopToken()))
    assert told.value < 60 and shuffled.value > 10 * told.value
    text = found.tokenizer.decode(list(continuation(found.model, ids[:4], 40, stop=StopToken(), context=found.context)))
    assert text.isascii() and len(text.split()) > 8
