"""Several processes on one run: what they come to is what one process comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks_driving
import torch

from engine.errors import UsageError
from engine.machine.ranks.place import place

# Batches of 32: of 150 items five, unevenly many for two ranks and for three; of 20 one, so that a rank has none.
NETWORKS: dict[str, Any] = {
    "calibrated many": (150, 32),
    "calibrated few": (20, 32),
    "rounded many": (150, 32),
    "judged many": 16,
    "judged few": 64,
    "trained folded": {"folded": True, "batch": 32},
    "trained with statistics": {"folded": False, "batch": 50},
}
DECODERS: dict[str, Any] = {
    "a_decoder gpt2": {"family": "gpt2", "count": 5, "method": "gptq"},
    "a_decoder one text": {"family": "llama", "count": 1, "method": "awq+gptq"},
}


def alone(work: dict[str, Any]) -> dict[str, Any]:
    return {name: ranks_driving.alone(name.partition(" ")[0], given) for name, given in work.items()}


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return alone(NETWORKS)


# Each process imports torch: that takes most of the time.
@pytest.fixture(scope="module", params=[3, pytest.param(2, marks=pytest.mark.slow)])
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return ranks_driving.together("several", request.param, tmp_path_factory.mktemp("ranks"), NETWORKS)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith(("calibrated", "judged"))])
def test_grids_and_figures_are_those_of_one_process(name: str, one: dict[str, Any], many: list[dict[str, Any]]) -> None:
    for rank in many:
        assert rank[name]["changes" if "judged" in name else "minmax"]
        found = {key: value for key, value in rank[name].items() if key != "changes"}
        assert found == {key: value for key, value in one[name].items() if key != "changes"}
    if "judged" in name:
        # What is shown of single items is rank 0's.
        assert many[0][name]["changes"] == one[name]["changes"]


def assert_same_integers(mine: dict[str, Any], others: dict[str, Any]) -> None:
    """Sums of float32 products in another order move a code that lies between two integers: one of 500 at most, and by one."""
    codes = [(a.long(), b.long()) for (a, _), (b, _) in zip(mine.values(), others.values(), strict=True)]
    assert sum(int((a != b).sum()) for a, b in codes) <= sum(a.numel() for a, _ in codes) // 500
    assert all(int((a - b).abs().max()) <= 1 for a, b in codes)


def assert_equal_integers(mine: dict[str, Any], others: dict[str, Any]) -> None:
    for a, b in zip(mine.values(), others.values(), strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_integers_of_a_network_are_those_of_one_process(one: dict[str, Any], many: list[dict[str, Any]]) -> None:
    for rank in many:
        assert_same_integers(rank["rounded many"], one["rounded many"])
        assert_equal_integers(rank["rounded many"], many[0]["rounded many"])


@pytest.mark.slow  # transformers is imported by each process
@pytest.mark.parametrize("count", [2, 3])
def test_integers_of_a_decoder_are_those_of_one_process(count: int, tmp_path: Path) -> None:
    expected, several = alone(DECODERS), ranks_driving.together("several", count, tmp_path, DECODERS)
    for name in DECODERS:
        for rank in several:
            assert_same_integers(rank[name]["weights"], expected[name]["weights"])
            assert_equal_integers(rank[name]["weights"], several[0][name]["weights"])
            for key, tensor in several[0][name]["state"].items():
                assert torch.equal(rank[name]["state"][key], tensor), key


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("trained")])
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
