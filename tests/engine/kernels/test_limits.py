"""What a processor reaches, measured and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.kernels import limits as measuring
from engine.kernels.limits import Limits, limits
from engine.kernels.probe import Machine, probe

HERE = probe()
pytestmark = pytest.mark.skipif(not HERE.integer, reason="no integer kernel runs here")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path))
    monkeypatch.setattr(measuring, "_SECONDS", 0.02)
    monkeypatch.setattr(measuring, "_READ", 1 << 24)
    monkeypatch.setattr(measuring, "_SHAPES", ((64, 256, 256),))
    return tmp_path


def test_a_rate_is_work_over_the_least_time(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_least", lambda call: (call(), 0.5)[1])
    found = limits(HERE)
    assert found is not None and found.macs == 64 * 256 * 256 / 0.5 and found.bytes == (1 << 24) / 8 / 0.5
    assert found.to_dict()["peak_ops_per_s"] == 2 * found.macs and found.threads == torch.get_num_threads()


def test_it_is_measured_once_and_the_best_is_kept(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = limits(HERE)
    assert first is not None and first.macs > 0 and first.bytes > 0
    monkeypatch.setattr(measuring, "_least", lambda call: pytest.fail("it was measured again"))
    assert limits(HERE) == first
    monkeypatch.setattr(measuring, "_least", lambda call: 1e3)
    assert limits(HERE, again=True) == first
    monkeypatch.setattr(measuring, "_least", lambda call: 1e-9)
    better = limits(HERE, again=True)
    assert better is not None and better.macs > first.macs and limits(HERE) == better


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"macs": -1, "bytes": 1, "kernel": "dnnl"}), json.dumps({"macs": "x"})])
def test_a_damaged_file_is_measured_anew(quick: Path, text: str) -> None:
    assert limits(HERE) is not None
    (kept,) = quick.glob("limits-*.json")
    kept.write_text(text)
    found = limits(HERE)
    assert isinstance(found, Limits) and found.macs > 0 and json.loads(kept.read_text())["macs"] == found.macs


def test_where_nothing_runs_on_integers_there_are_no_limits(quick: Path) -> None:
    assert limits(Machine("DEFAULT", False, None, {"dnnl.matmul": "not there"})) is None


def test_without_the_memory_to_measure_in_nothing_is_told(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(call: object) -> float:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(measuring, "_least", full)
    assert limits(HERE) is None and not list(quick.glob("limits-*"))
