"""What a recipe says of training, for a language model: what they are where nothing was said, and what they change."""

from __future__ import annotations

from typing import Any

import tiny_language
import torch

from engine.recipe.recipe import Recipe
from engine.tasks.causal_lm_loading import settled
from engine.training.finetune import TuneSchedule
from engine.training.settings import schedule_of


def with_batch(recipe: Recipe, context: int) -> Recipe:
    return tiny_language.task(torch.arange(9), context, context=context).settled(recipe)


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
