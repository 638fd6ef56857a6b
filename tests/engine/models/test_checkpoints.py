"""Weights inside of training checkpoints: found under the names that trainers use, and what was chosen is said."""

from __future__ import annotations

import argparse
import datetime
import os
import pickle
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from engine.errors import EngineError
from engine.models.weights_file import load_into, read_checkpoint, read_state

MODEL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
STATE = MODEL.state_dict()
EMA = {name: value * 2 for name, value in STATE.items()}


def same(found: dict[str, Tensor], wanted: Any = STATE) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("key", ["net", "model_state", "weights", "params_ema", "params", "network", "state_dict", "model", "my_own_key"])
def test_the_weights_of_a_checkpoint_are_found_by_the_keys_of_trainers(tmp_path: Path, key: str) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}
    torch.save({"epoch": 3, "optimizer": optimizer, key: STATE, "lr_scheduler": {"last": torch.zeros(1)}}, tmp_path / "w.pt")
    assert same(read_state(tmp_path / "w.pt"))


@pytest.mark.parametrize("ema", ["state_dict_ema", "model_ema", "ema", "params_ema", "ema_state_dict"])
def test_of_averaged_and_last_weights_the_averaged_ones_are_taken_and_it_is_said(tmp_path: Path, ema: str) -> None:
    torch.save({"state_dict": STATE, ema: EMA}, tmp_path / "w.pt")
    found = read_checkpoint(tmp_path / "w.pt")
    assert same(found.tensors, EMA)
    assert found.said == f" (its {ema}, the averaged weights, not state_dict)"


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "module.", "_orig_mod.", "net.", "module.model.", "encoder.deep."])
def test_a_prefix_of_any_wrapper_is_taken_off_where_the_model_lacks_it(tmp_path: Path, prefix: str) -> None:
    state = {f"{prefix}{name}": value for name, value in STATE.items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(2)}, "pytorch-lightning_version": "2"}, tmp_path / "w.ckpt")
    found = read_checkpoint(tmp_path / "w.ckpt", STATE)
    assert same(found.tensors) and "without criterion.weight" in found.said


def test_an_averaged_model_and_the_counters_of_a_profiler_are_read(tmp_path: Path) -> None:
    averaged = AveragedModel(MODEL)
    averaged.update_parameters(MODEL)
    state = averaged.state_dict()
    assert "n_averaged" in state
    counters = {"module.total_ops": torch.zeros(1), "module.0.total_ops": torch.zeros(1), "module.0.total_params": torch.zeros(1)}
    torch.save({**state, **counters}, tmp_path / "w.pt")
    for own in ((), STATE):
        found = read_checkpoint(tmp_path / "w.pt", own)
        assert same(found.tensors) and "AveragedModel" in found.said


def test_a_model_of_its_own_with_such_names_keeps_them(tmp_path: Path) -> None:
    own = {"n_averaged": torch.zeros(1), "total_ops": torch.zeros(1), "module.weight": torch.ones(1)}
    torch.save(own, tmp_path / "w.pt")
    assert same(read_state(tmp_path / "w.pt", own), own)


class Settings(dict[str, Any]):
    """What a trainer keeps of its own: a name that no other program can import."""


BESIDE: dict[str, Any] = {
    "args": argparse.Namespace(lr=0.1, data=Path("/data")), "best": np.float64(0.5), "count": np.int64(3), "out": PurePosixPath("/x"),
    "list": np.arange(3), "when": datetime.datetime(2026, 1, 2), "space": SimpleNamespace(a=1), "settings": Settings(a=[1]),
    "dtype": torch.float16, "size": torch.Size([1]), "order": OrderedDict(a=1), "set": {1, 2}, "device": torch.device("cpu"),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", list(BESIDE))
def test_weights_are_read_beside_objects_of_any_type(tmp_path: Path, key: str, zipped: bool) -> None:
    parameters = {name: nn.Parameter(value) if value.is_floating_point() else value for name, value in STATE.items()}
    content = {key: BESIDE[key], "state_dict": parameters, "again": BESIDE[key]}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    assert same(read_state(tmp_path / "w.pt"))


def test_what_is_left_unread_is_named(tmp_path: Path) -> None:
    torch.save({"args": BESIDE["args"], "model": STATE}, tmp_path / "w.pt")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    found = load_into(model, tmp_path / "w.pt", "m")
    assert same(model.state_dict()) and "argparse.Namespace" in found.said and "left unread" in found.said


class Calls:
    def __init__(self, function: Any, *given: Any) -> None:
        self.called = (function, given)

    def __reduce__(self) -> Any:
        return self.called


@pytest.mark.parametrize(
    "function", [os.mkdir, os.system, exec, eval, __import__, getattr, pickle.loads, print, open, tuple.__subclasshook__]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_names_functions_of_python_is_refused_and_runs_nothing(tmp_path: Path, function: Any, zipped: bool) -> None:
    mark = tmp_path / "mark"
    torch.save({"model": STATE, "x": Calls(function, str(mark))}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(EngineError, match="cannot run code"):
        read_state(tmp_path / "w.pt")
    assert not mark.exists()


ran: list[int] = []


def noted(*given: Any) -> dict[str, int]:
    ran.append(1)
    return {}


class Stateful:
    def __setstate__(self, state: Any) -> None:
        ran.append(2)

    def __getstate__(self) -> Any:
        return {"a": 1}


def test_nothing_that_a_file_names_is_called(tmp_path: Path) -> None:
    torch.save({"model": STATE, "x": Calls(noted, 1), "y": Stateful()}, tmp_path / "w.pt")
    found = read_checkpoint(tmp_path / "w.pt")
    assert same(found.tensors) and ran == [] and "noted" in found.said
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert ran, "the objects of this test must be ones that run code"


def test_a_file_without_tensors_by_name_tells_its_keys(tmp_path: Path) -> None:
    torch.save({"encoder": {"a": torch.ones(1)}, "decoder": {"b": torch.ones(1)}}, tmp_path / "w.pt")
    with pytest.raises(EngineError, match="its keys are encoder, decoder"):
        read_state(tmp_path / "w.pt")


def test_a_pipe_instead_of_weights_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pt")
    with pytest.raises(EngineError, match="no regular file"):
        read_state(tmp_path / "w.pt")
