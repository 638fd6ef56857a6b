"""A decoder's ONNX file in ONNX Runtime: logits for ids, and step by step over a cache that stays in the runtime's memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import EngineError, one_line
from engine.export.onnx.decoder_graph import IDS
from engine.export.onnx.graph import OUTPUT
from engine.export.onnx.precision import precise

Cache = Mapping[str, Any]


class OnnxDecoder:
    """``logits`` reads text whole, ``step`` goes on. Raises EngineError for a file that ONNX Runtime cannot load and for one that is no
    decoder of ``engine.export.onnx.decoder_graph``."""

    def __init__(self, path: Path, threads: int) -> None:
        import numpy
        import onnxruntime

        if not path.is_file():
            raise EngineError(f"{path} does not exist: export it again")
        options = onnxruntime.SessionOptions()
        # Threads that go on waiting between two calls slow down whatever else computes.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
        self.note = precise(options)
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
