"""What the proposal does about slower layers, with times that are given."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from engine.events.speed import relative_speed
from engine.kernels.stopwatch import Race
from engine.kernels.timing import Timing
from engine.planning.layer_speed import Pace, Trial, decide, is_open, stored, undecided
from engine.recipe.presets import PRESETS
from engine.recipe.spec import LayerSpec

W8A8 = PRESETS["w8a8"]
SLOW, BOTH = Pace(Timing(0.3, 0.1), Timing(1.0, 4.0, 64)), Pace(Timing(0.3, 0.1), Timing(5.0, 4.0, 64))
FAST = Pace(Timing(0.1, 0.3))


class Bench:
    """Times by the set of layers that are in fp32, for one image and for a batch."""

    def __init__(self, times: Mapping[frozenset[str], tuple[Race, Race]]) -> None:
        self.times = times
        self.tried: list[tuple[frozenset[str], int]] = []

    def race(self, before: Mapping[str, LayerSpec], after: Mapping[str, LayerSpec], batch: int) -> Race | None:
        assert all(spec == W8A8 for spec in before.values())
        paths = frozenset(path for path, spec in after.items() if spec == stored(W8A8))
        self.tried.append((paths, batch))
        found = self.times.get(paths)
        return found[batch > 1] if found else None


def decided(
    paces: Mapping[str, Pace], groups: list[tuple[str, ...]], bench: Bench, given: Collection[str] | None = None
) -> dict[str, Pace]:
    return dict(decide(paces, dict.fromkeys(paces, W8A8), groups, bench.race, 64, given))


def of(*paths: str) -> frozenset[str]:
    return frozenset(paths)


def test_a_layer_that_is_faster_for_a_batch_stays_and_nothing_is_tried() -> None:
    bench = Bench({})
    found = decided({"a": SLOW, "b": FAST}, [], bench)
    assert set(found) == {"a"} and not found["a"].stored and not bench.tried and not is_open(SLOW)
    assert found["a"].why == (
        "slower alone here: 0.300 ms on integers, 0.100 ms in fp32; "
        "for 64 images it is not (1.000 ms on integers, 4.000 ms in fp32), so it stays on integers"
    )


def test_a_layer_moves_where_the_steps_around_it_take_less() -> None:
    found = decided({"a": BOTH}, [("a",)], Bench({of("a"): ((0.4, 0.2), (5.0, 5.5))}))
    assert found["a"].stored and found["a"].why.endswith(
        "with the steps around it 0.400 ms on integers, 0.200 ms in fp32, so it is computed in fp32, on stored weights"
    )


@pytest.mark.parametrize(
    ("times", "told"),
    [
        (((0.4, 0.5), (5.0, 4.0)), "0.500 ms in fp32, so it stays"),
        (((0.4, 0.36), (5.0, 4.0)), "0.360 ms in fp32, so it stays"),
        (((0.4, 0.2), (5.0, 6.0)), "for a batch 5.000 ms on integers, 6.000 ms in fp32, so it stays"),
        (None, "could not be timed, so it stays"),
    ],
)
def test_a_layer_stays_where_they_do_not(times: tuple[Race, Race] | None, told: str) -> None:
    found = decided({"a": BOTH}, [("a",)], Bench({of("a"): times} if times else {}))
    assert not found["a"].stored and told in found["a"].why


def test_a_group_moves_whole_or_its_layers_one_by_one() -> None:
    paces, gains, loses = {"a": BOTH, "b": BOTH}, ((0.4, 0.2), (1.0, 1.0)), ((0.4, 0.6), (1.0, 1.0))
    whole = Bench({of("a", "b"): gains})
    assert [path for path, pace in decided(paces, [("a", "b")], whole).items() if pace.stored] == ["a", "b"]
    assert whole.tried == [(of("a", "b"), 1), (of("a", "b"), 64)]
    single = Bench({of("a", "b"): loses, of("a"): loses, of("b"): gains})
    assert [path for path, pace in decided(paces, [("a", "b")], single).items() if pace.stored] == ["b"]


def test_close_calls_decide_the_same_way_every_time() -> None:
    for noise in (0.93, 1.0, 1.07):
        found = decided({"a": BOTH}, [("a",)], Bench({of("a"): ((0.4 * noise, 0.38), (1.0, 1.0))}))
        assert not found["a"].stored


def test_what_was_decided_before_stands_whatever_is_measured() -> None:
    paces = {"a": BOTH, "b": BOTH, "c": SLOW, "d": FAST, "e": Pace(), "f": SLOW}
    against = Bench({of("a"): ((0.4, 0.6), (1.0, 1.0)), of("b"): ((0.4, 0.2), (1.0, 1.0))})
    found = decided(paces, [("a",), ("b",)], against, given=("a", "c", "d", "e"))
    assert {path for path, pace in found.items() if pace.stored} == {"a", "c", "d", "e"}
    assert found["a"].why.endswith("the recipe has it computed in fp32, on stored weights")
    assert found["b"].why.endswith("the recipe has it stay on integers")
    assert found["e"].why == found["d"].why == "the recipe has it computed in fp32, on stored weights"
    assert found["f"].why.endswith("so it stays on integers")


def test_a_busy_machine_marks_and_does_not_decide() -> None:
    assert "busy" in undecided(BOTH).why and not undecided(BOTH).stored
    # Times from then are shown without a claim.
    assert not undecided(FAST).why and not undecided(FAST).steady
    assert relative_speed(3.0, 1.0, undecided(BOTH).steady) == "~" and "slower alone here" not in undecided(BOTH).why


def test_weights_stay_as_they_were_proposed() -> None:
    four = PRESETS["w4a8"]
    assert stored(four).weights == four.weights and stored(four).activations is None
    assert Trial((0.2, 0.1), (1.0, 1.1)).gains and not Trial((0.2, 0.1), (1.0, 1.2)).gains
