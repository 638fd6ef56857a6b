"""A recipe's keys for a language model: what they are where nothing was said, what they change, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest

from engine.decoders.finetune import TuneSchedule
from engine.decoders.loading import settled
from engine.decoders.settings import refuse_keys_of_images, schedule_of, with_batch
from engine.errors import UsageError
from engine.recipe import Recipe


def asked(**qat: Any) -> Recipe:
    return with_batch(settled(Recipe.make(model="gpt2-mini", qat=qat)), 512)


def test_where_nothing_was_said_a_step_reads_about_a_thousand_tokens() -> None:
    found = schedule_of(asked().qat, 512, 3)
    assert found == TuneSchedule(epochs=5, context=512, distill=1.0, seed=3)
    assert [with_batch(settled(Recipe.make(model="gpt2")), context).qat.batch for context in (32, 1024, 4096)] == [32, 1, 1]


def test_rate_and_batch_are_those_of_the_recipe_and_stay_when_it_is_read_again() -> None:
    part = asked(lr=0.01, batch=64, epochs=2).qat
    found = schedule_of(part, 512, 0)
    assert (found.lr, found.tokens, found.epochs) == (0.01, 64 * 512, 2)
    once = asked()
    again = with_batch(settled(Recipe.make(**once.model_dump())), 512)
    assert again.qat == once.qat and again.fingerprint() == once.fingerprint()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"qat": {"freeze_bn": 0}}, "qat.freeze_bn is for networks on images, and gpt2-mini reads text: take it out of the recipe"),
        ({"quantize_first": True, "stem": "small"}, "stem, quantize_first are for networks on images"),
        ({"data": {"batch": 8, "size": 32}}, "data.size, data.batch are for"),
        ({"slower": ["fc2"]}, "slower is for"),
    ],
)
def test_keys_of_images_are_refused_in_one_line(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as told:
        refuse_keys_of_images(Recipe.make(model="gpt2-mini", **fields))
    assert str(told.value).startswith(says) and "\n" not in str(told.value)
    refuse_keys_of_images(settled(Recipe.make(model="gpt2-mini", slower=[], qat={"batch": 4, "lr": 0.1})))
