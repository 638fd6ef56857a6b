"""Several processes on one run: what they come to is what one process comes to."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import driving
import pytest
import ranks_driving
import torch

from engine.errors import UsageError
from engine.events.cancellation import StopToken
from engine.events.event import EpochFinished, Event
from engine.machine.ranks.place import place
from engine.runs import pipeline

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
    "a_decoder errors carried": {"family": "llama", "count": 5, "method": "gptq+"},
    "a_decoder by importance": {"family": "gpt2", "count": 4, "method": "imatrix"},
    "a_decoder scaled": {"family": "llama", "count": 5, "method": "awq"},
    "a_decoder learned": {"family": "llama", "count": 5, "method": "autoround"},
}


def alone(work: dict[str, Any]) -> dict[str, Any]:
    # One thread, as each rank has: two share a product out, and float32 shows it.
    with driving.one_thread():
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


def assert_equal_integers(mine: dict[str, Any], others: dict[str, Any]) -> None:
    assert mine.keys() == others.keys()
    for a, b in zip(mine.values(), others.values(), strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_integers_of_a_network_are_those_of_one_process(one: dict[str, Any], many: list[dict[str, Any]]) -> None:
    for rank in many:
        assert_equal_integers(rank["rounded many"], one["rounded many"])


@pytest.mark.slow  # transformers is imported by each process
def test_integers_of_a_decoder_are_those_of_one_process_on_any_number_of_ranks(tmp_path: Path) -> None:
    expected = alone(DECODERS)
    several = [one for count in (2, 3) for one in ranks_driving.together("several", count, tmp_path / str(count), DECODERS)]
    for name in DECODERS:
        for rank in several:
            assert_equal_integers(rank[name]["weights"], expected[name]["weights"])
            for key, tensor in expected[name]["state"].items():
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


def said(processes: list[Any], folder: Path) -> list[str | None]:
    """What each rank returned; None for one that was killed."""
    try:
        for process in processes:
            process.communicate(timeout=240)
    finally:
        for process in processes:
            process.kill()
    places = [folder / f"rank-{rank}.pickle" for rank in range(len(processes))]
    return [pickle.loads(place.read_bytes()) if place.exists() else None for place in places]


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    processes = ranks_driving.started("nothing", 2, tmp_path, own={0: {"QTUI_RENDEZVOUS": "2"}}, only=[0])
    (found,) = said(processes, tmp_path)
    assert found and found.startswith("EngineError: rank 1 of 2 did not come to 127.0.0.1:") and "\n" not in found


def test_ranks_with_different_recipes_are_told_so(tmp_path: Path) -> None:
    found = said(ranks_driving.started("agreed", 2, tmp_path, own={1: {"A_RECIPE": "another"}}), tmp_path)
    line = "UsageError: ranks have different recipes: recipe is one on rank 0 and another on rank 1: start all of them with the same"
    assert found == [line, line]


@pytest.mark.parametrize(
    ("how", "first"),
    [
        ("killed", r"LostRank: rank 1 \(.*, process \d+\) ended without a word \(killed, or out of memory\)"),
        ("failed", r"LostRank: rank 1 \(.*, process \d+\) failed: its data are damaged: copy them again"),
        ("stopped", "Cancelled"),
    ],
)
def test_a_rank_that_ends_is_named_with_its_reason(how: str, first: str, tmp_path: Path) -> None:
    found = said(ranks_driving.started("one_ends", 2, tmp_path, how), tmp_path)
    assert found[0] is not None and re.fullmatch(first, found[0])
    assert found[1] == {"killed": None, "failed": "EngineError: its data are damaged: copy them again", "stopped": "Cancelled"}[how]


class Launched:
    """``torchrun`` with the command line of a run on ``count`` processes, its folder, and what it said."""

    def __init__(self, count: int, folder: Path, *command: str, restarts: int = 0) -> None:
        self.folder = folder
        code = "import sys; from torch.distributed.run import main; main(sys.argv[1:])"
        launch = [f"--nproc-per-node={count}", f"--master-port={ranks_driving.free_port()}", f"--max-restarts={restarts}", "-m", "qtui"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *launch, *command], cwd=driving.REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def epoch(self, number: int) -> None:
        """Wait for the end of an epoch."""
        until = time.monotonic() + 240
        events = self.folder / "events.jsonl"
        while not (events.exists() and sum("EpochFinished" in line for line in events.read_text().splitlines()) >= number):
            assert time.monotonic() < until and self.process.poll() is None, self.process.communicate()
            time.sleep(0.2)

    def rank(self, number: int) -> int:
        """The process of a rank."""
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                around = (entry / "environ").read_bytes().split(b"\0")
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if f"RANK={number}".encode() in around and parent == str(self.process.pid):
                    return int(entry.name)
        raise LookupError(number)

    def ended(self) -> tuple[int, str, str]:
        try:
            out, err = self.process.communicate(timeout=280)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.returncode, out, err


def tiny_run(tiny_file: Path, folder: Path, epochs: int) -> tuple[str, ...]:
    asked = ("run", f"{tiny_file}:make", "--data", "digits", "--preset", "w4a8", "--qat", "always", "--epochs", str(epochs), "--yes")
    return (*asked, "--out", str(folder))


@pytest.mark.slow  # whole runs, each of several processes
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for a rank in /proc")
def test_a_killed_rank_ends_the_run_with_its_name_and_fewer_ranks_go_on(tiny_file: Path, own_cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    launched = Launched(2, folder, *tiny_run(tiny_file, folder, 500))
    launched.epoch(1)
    killed = launched.rank(1)
    os.kill(killed, signal.SIGKILL)
    code, _, err = launched.ended()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(lines) == 1
    assert re.fullmatch(rf"error: rank 1 \(.*, process {killed}\) ended .* during qat: .* qtui resume {re.escape(str(folder))}", lines[0])
    assert json.loads((folder / "state.json").read_text())["state"] == "failed"
    before = len((folder / "events.jsonl").read_text().splitlines())
    # Stopped on three, as a scheduler does; then one process goes on, to its end.
    launched = Launched(3, folder, "resume", str(folder), "--yes")
    launched.epoch(2)
    os.kill(launched.process.pid, signal.SIGTERM)
    launched.ended()
    assert json.loads((folder / "state.json").read_text())["state"] == "cancelled"
    stop = StopToken()

    def enough(event: Event, stop: StopToken) -> None:
        if isinstance(event, EpochFinished):
            stop.enough()

    with driving.untimed():
        outcome = driving.consume(pipeline.resume(folder, stop), stop, on_event=enough)
    assert outcome.report is not None, outcome.error
    said = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()[before:]]
    continued = [event["text"] for event in said if event["event"] == "Notice" and event["text"].startswith("continuing")]
    assert len(continued) == 2


@pytest.mark.slow  # a whole run of several processes, begun twice
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for a rank in /proc")
def test_a_launcher_that_starts_the_ranks_again_goes_on_with_their_run(tiny_file: Path, own_cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    launched = Launched(2, folder, *tiny_run(tiny_file, folder, 6), restarts=1)
    launched.epoch(1)
    os.kill(launched.rank(1), signal.SIGKILL)
    code, _, err = launched.ended()
    assert code == 0, err
    said = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert any(event["event"] == "Notice" and event["text"].startswith("continuing") for event in said)
    assert (folder / "report.json").exists() and not (folder / "previous").exists()
    assert [event["epoch"] for event in said if event["event"] == "EpochFinished"] == [1, 2, 3, 4, 5, 6]
