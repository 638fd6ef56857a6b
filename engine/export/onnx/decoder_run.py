"""A decoder's ONNX file in ONNX Runtime: logits for ids, and step by step over a cache that stays in the runtime's memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, one_line
from engine.export.onnx.decoder_graph import IDS
from engine.export.onnx.graph import OUTPUT

_PATIENCE = 600
_TRIAL = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
first, *others = session.get_inputs()
empty = {other.name: numpy.zeros([1, other.shape[1], 0, other.shape[3]], numpy.float32) for other in others}
session.run(None, {first.name: numpy.zeros([1, 2], numpy.int64), **empty})
"""
Cache = Mapping[str, Any]


class OnnxDecoder:
    """``logits`` reads text whole, ``step`` goes on. Raises EngineError for a file that ONNX Runtime cannot load and for one that is no
    decoder of ``engine.export.onnx.decoder_graph``; and, with ``tried``, first loads it in a process of its own, so that a crash of the
    runtime is an error too."""

    def __init__(self, path: Path, threads: int, *, tried: bool = False) -> None:
        import numpy
        import onnxruntime

        if not path.is_file():
            raise EngineError(f"{path} does not exist: export it again")
        if tried:
            _try(path)
        options = onnxruntime.SessionOptions()
        # Threads that go on waiting between two calls slow down whatever else computes.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise EngineError(f"{path} cannot be loaded by ONNX Runtime ({one_line(error, 160)}): export it again") from error
        first, *others = self._session.get_inputs()
        self._outputs = [output.name for output in self._session.get_outputs()]
        wanted = [OUTPUT, *(other.name.replace("past_key_values", "present") for other in others)]
        if first.name != IDS or self._outputs != wanted or len(wanted) < 3:
            raise EngineError(f"{path} does not take token ids and a cache: it is no export of a language model")
        self._empty = {other.name: (other.shape[1], other.shape[3]) for other in others}
        self.path, self.label = path, f"onnxruntime {onnxruntime.__version__}"
        self._numpy, self._value = numpy, onnxruntime.OrtValue

    def __call__(self, ids: Tensor) -> Tensor:
        """Token ids (N, T) to logits (N, T, vocabulary), without a cache."""
        return self.step(ids, None)[0]

    def step(self, ids: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """Logits of ids (N, T) that follow those of ``cache``, and the cache with them. Raises EngineError where they do not fit."""
        given = dict(cache) if cache is not None else self._nothing(len(ids))
        given[IDS] = self._value.ortvalue_from_numpy(ids.to(torch.int64).contiguous().numpy())
        try:
            logits, *held = self._session.run_with_ort_values(self._outputs, given)
        except Exception as error:
            raise EngineError(f"{self.path} does not run on {ids.shape[1]} more tokens ({one_line(error, 160)})") from error
        return torch.from_numpy(logits.numpy()), dict(zip(self._empty, held, strict=True))

    def _nothing(self, rows: int) -> dict[str, Any]:
        made = {}
        for name, (count, width) in self._empty.items():
            made[name] = self._value.ortvalue_from_numpy(self._numpy.zeros((rows, count, 0, width), self._numpy.float32))
        return made


def _try(path: Path) -> None:
    command = [sys.executable, "-c", _TRIAL, str(path)]
    try:
        # In a session of its own: a Ctrl-C or hang-up that is meant for the run is no crash of the runtime.
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=False, start_new_session=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"ONNX Runtime does not load {path} in a process of its own ({type(error).__name__})") from error
    if done.returncode not in (0, 1):
        raise EngineError(f"ONNX Runtime crashes on {path} (exit code {done.returncode}): use another version of it")
