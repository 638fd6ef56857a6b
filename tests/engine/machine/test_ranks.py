"""Several processes on one run: what they come to is what one process comes to."""

from __future__ import annotations

from typing import Any

import pytest
import ranks_driving
import torch

from engine.errors import UsageError
from engine.machine.ranks.place import place

# Batches of 32: of 150 items five, unevenly many for two ranks and for three; of 20 one, so that a rank has none.
WORK: dict[str, Any] = {
    "calibrated many": (150, 32),
    "calibrated few": (20, 32),
    "rounded many": (150, 32),
    "judged many": 16,
    "judged few": 64,
    "a_decoder gpt2": {"family": "gpt2", "count": 5, "method": "gptq"},
    "a_decoder one text": {"family": "llama", "count": 1, "method": "awq+gptq"},
    "trained folded": {"folded": True, "batch": 32},
    "trained with statistics": {"folded": False, "batch": 50},
}


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return {name: ranks_driving.alone(name.partition(" ")[0], given) for name, given in WORK.items()}


@pytest.fixture(scope="module", params=[2, 3])
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return ranks_driving.together("several", request.param, tmp_path_factory.mktemp("ranks"), WORK)


@pytest.mark.parametrize("name", [name for name in WORK if name.startswith(("calibrated", "judged"))])
def test_grids_and_figures_are_those_of_one_process(name: str, one: dict[str, Any], many: list[dict[str, Any]]) -> None:
    for rank in many:
        assert rank[name]["changes" if "judged" in name else "minmax"]
        found = {key: value for key, value in rank[name].items() if key != "changes"}
        assert found == {key: value for key, value in one[name].items() if key != "changes"}
    if "judged" in name:
        # What is shown of single items is rank 0's.
        assert many[0][name]["changes"] == one[name]["changes"]


@pytest.mark.parametrize("name", [name for name in WORK if name.startswith(("rounded", "a_decoder"))])
def test_integers_are_those_of_one_process_up_to_the_order_of_sums(name: str, one: dict[str, Any], many: list[dict[str, Any]]) -> None:
    """Sums of float32 products in another order move a code that lies between two integers: one of 500 at most, and by one."""

    def weights(found: dict[str, Any]) -> dict[str, Any]:
        return found.get("weights", found)  # type: ignore[no-any-return]

    for rank in many:
        codes = [(a[0].long(), b[0].long()) for a, b in zip(weights(rank[name]).values(), weights(one[name]).values(), strict=True)]
        moved = sum(int((a != b).sum()) for a, b in codes)
        assert moved <= max(sum(a.numel() for a, _ in codes) // 500, 1)
        assert all(int((a - b).abs().max()) <= 1 for a, b in codes)
        for mine, first in zip(weights(rank[name]).values(), weights(many[0][name]).values(), strict=True):
            assert torch.equal(mine[0], first[0]) and torch.equal(mine[1], first[1])


@pytest.mark.parametrize("name", [name for name in WORK if name.startswith("trained")])
def test_training_takes_the_steps_of_one_process(name: str, one: dict[str, Any], many: list[dict[str, Any]]) -> None:
    """Batches, learned steps and normalization included: 150 images in batches of 32 and of 50, which no number of ranks divides."""
    expected = one[name]
    for rank in many:
        found = rank[name]
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
        for key, tensor in expected["state"].items():
            assert torch.allclose(found["state"][key].float(), tensor.float(), atol=2e-4), key
            assert torch.equal(found["state"][key], many[0][name]["state"][key]), key
        assert found["steps"] == pytest.approx(expected["steps"], rel=1e-4)


def test_one_process_asks_for_no_other() -> None:
    assert place({}).count == 1 and place({"RANK": "0", "WORLD_SIZE": "1"}).count == 1
    assert ranks_driving.alone("nothing") == 1


@pytest.mark.parametrize(
    ("said", "about"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
    ],
)
def test_a_place_that_cannot_be_is_refused_in_one_line(said: dict[str, str], about: str) -> None:
    with pytest.raises(UsageError, match=about) as refused:
        place(said)
    assert "\n" not in str(refused.value)
