"""The runtimes a practitioner would otherwise use, built from the same torch model and driven through one interface.

Every peer takes a float32 ``(N, C, H, W)`` array and returns logits; the batch dimension stays dynamic. A library that is
not installed costs its peers, not the run: `missing` says which and why.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import io
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import openvino as ov

Run = Callable[[np.ndarray], np.ndarray]

CALIBRATORS = {"min-max": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
REQUIRES = {
    "ONNX Runtime fp32": ("onnx", "onnxscript", "onnxruntime"),
    "ONNX Runtime int8": ("onnx", "onnxscript", "onnxruntime"),
    "OpenVINO fp32": ("openvino",),
    "OpenVINO int8 (NNCF)": ("openvino", "nncf"),
}
OPENVINO_INT8 = "OpenVINO int8 (NNCF)"
INPUT = "input"
SETTLE_S = 0.005


@dataclass(frozen=True)
class Peer:
    """A model ready to run, and what it took to get there."""

    name: str
    version: str
    seconds: float
    parts: dict[str, float]
    size_bytes: int
    run: Run


class _Clock:
    """Wall time by part; a part entered twice adds up."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.parts[part] = self.parts.get(part, 0.0) + time.perf_counter() - start


def missing() -> list[str]:
    """One line for each group of peers that is left out, with the packages it lacks."""
    return [
        f"{name} is left out: {', '.join(lacking)} not installed (uv sync --group bench)"
        for name, packages in REQUIRES.items()
        if (lacking := [package for package in packages if importlib.util.find_spec(package) is None])
    ]


def fp32_peers(model: nn.Module, example: Tensor, threads: int, batch: int | None = None) -> list[Peer]:
    """The float models: what the int8 ones have to beat. Sets torch's thread count for the whole process.

    With ``batch`` OpenVINO compiles for that number of images alone, which is its faster form.
    """
    torch.set_num_threads(threads)
    peers = [
        _torch_peer(model, "torch fp32", torch.contiguous_format),
        _torch_peer(model, "torch fp32 channels-last", torch.channels_last),
    ]
    if _installed("ONNX Runtime fp32"):
        peers.append(_onnxruntime_fp32(model, example, threads))
    if _installed("OpenVINO fp32"):
        peers.append(_openvino_fp32(model, example, threads, batch))
    return peers


def int8_peers(
    model: nn.Module,
    example: Tensor,
    calibration: list[np.ndarray],
    threads: int,
    methods: Sequence[str] = ("min-max",),
    vnni: bool | None = None,
    batch: int | None = None,
    only: str | None = None,
) -> list[Peer]:
    """The same model after each library's own post-training quantization on the same images.

    `methods` are ONNX Runtime's calibrators ("min-max", "entropy", "percentile"). `vnni` says whether 8-bit products
    accumulate without saturating; None asks the CPU. Where they saturate, each library's own remedy is switched on.
    `only` is one group of `REQUIRES`. `threads` binds the finished models; the calibrators offer no such setting and take every core.
    """
    if unknown := set(methods) - set(CALIBRATORS):
        raise ValueError(f"unknown calibration method {sorted(unknown)}: choose from {sorted(CALIBRATORS)}")
    vnni = torch.cpu._is_vnni_supported() if vnni is None else vnni
    torch.set_num_threads(threads)
    peers = []
    if only != OPENVINO_INT8 and _installed("ONNX Runtime int8"):
        peers += [_onnxruntime_int8(model, example, calibration, threads, method, vnni) for method in methods]
    if only in (None, OPENVINO_INT8) and _installed(OPENVINO_INT8):
        peers.append(_openvino_int8(model, example, calibration, threads, vnni, batch))
    return peers


def latency(runs: dict[str, Callable[[], object]], rounds: int = 100, warmup: int = 10) -> dict[str, tuple[float, float]]:
    """Median and 95th percentile in ms of one call of each candidate, as `timed` measures them."""
    times = timed(runs, rounds, warmup)
    return {name: (float(np.percentile(ms, 50)), float(np.percentile(ms, 95))) for name, ms in times.items()}


def timed(runs: dict[str, Callable[[], object]], rounds: int = 100, warmup: int = 10) -> dict[str, list[float]]:
    """Milliseconds of ``rounds`` calls of each candidate, in a process that serves this model alone.

    The candidates are interleaved, so that drift of the machine hits all alike, and each round starts at another one, so
    that none always runs in the wake of the same neighbour.
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(warmup):
        for name in names:
            runs[name]()
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            # The thread pool of the candidate before spins on after its last call and takes the cores from this one:
            # without the pause and the untimed calls, a call after another library's reads up to five times too slow.
            time.sleep(SETTLE_S)
            ready = time.perf_counter() + SETTLE_S
            runs[name]()
            while time.perf_counter() < ready:
                runs[name]()
            start = time.perf_counter()
            runs[name]()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def accuracy(run: Run, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Top-1 as a fraction of one."""
    right = total = 0
    for images, labels in batches:
        right += int((run(images).argmax(axis=1) == labels).sum())
        total += len(labels)
    if not total:
        raise ValueError("no images to measure accuracy on")
    return right / total


def _installed(name: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in REQUIRES[name])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps warnings, log lines and progress bars of exporters and calibrators off the table, and their telemetry off the net."""
    level = logging.root.manager.disable
    environment = os.environ.get("CI")
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        # Otherwise OpenVINO and NNCF report their use over the network without being asked to, on the clock.
        os.environ["CI"] = "true"
        try:
            yield
        finally:
            logging.disable(level)
            if environment is None:
                del os.environ["CI"]
            else:
                os.environ["CI"] = environment


def _versions(*packages: str) -> str:
    return ", ".join(f"{package} {version(package)}" for package in packages)


def _eval_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval()


# --- torch ---------------------------------------------------------------------------------------------------------------


def _torch_peer(model: nn.Module, name: str, memory_format: torch.memory_format) -> Peer:
    clock = _Clock()
    with clock("copy"):
        net = _eval_copy(model).to(memory_format=memory_format)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits: Tensor = net(torch.from_numpy(images).contiguous(memory_format=memory_format))
            return logits.numpy()

    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    return Peer(name, _versions("torch"), sum(clock.parts.values()), clock.parts, buffer.getbuffer().nbytes, run)


# --- ONNX Runtime --------------------------------------------------------------------------------------------------------


def _export(model: nn.Module, example: Tensor, path: Path) -> None:
    # Two images, because torch.export takes a batch of one for a constant.
    pair = example[:1].expand(2, *example.shape[1:]).contiguous()
    net = _eval_copy(model)
    try:
        # The older exporter first: for these graphs it is ten times faster, and the files run alike.
        torch.onnx.export(net, (pair,), path, input_names=[INPUT], dynamo=False, dynamic_axes={INPUT: {0: "batch"}})
    except (torch.onnx.OnnxExporterError, RuntimeError, TypeError):
        batch = torch.export.Dim("batch")
        torch.onnx.export(
            net, (pair,), path, input_names=[INPUT], dynamo=True, dynamic_shapes=({0: batch},), external_data=False, verbose=False
        )


@functools.cache
def _warm_exporter() -> None:
    """The exporter's first use in a process loads its operator tables: seconds that belong to no model."""
    with tempfile.TemporaryDirectory() as folder:
        _export(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2), Path(folder) / "warm.onnx")


def _session(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    # Its threads would otherwise spin on between calls and take a core from whoever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _onnxruntime_fp32(model: nn.Module, example: Tensor, threads: int) -> Peer:
    clock = _Clock()
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        _warm_exporter()
        path = Path(folder) / "model.onnx"
        with clock("export"):
            _export(model, example, path)
        with clock("session"):
            run = _session(path, threads)
        size = path.stat().st_size
    return Peer("ONNX Runtime fp32", _versions("onnxruntime"), sum(clock.parts.values()), clock.parts, size, run)


class _Reader:
    """The protocol of ONNX Runtime's calibration reader, over batches in memory."""

    def __init__(self, batches: list[np.ndarray]) -> None:
        self._batches = batches
        self._left = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._left, None)
        return None if batch is None else {INPUT: batch}

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._left = iter(self._batches[start_index:end_index])


def _onnxruntime_int8(model: nn.Module, example: Tensor, calibration: list[np.ndarray], threads: int, method: str, vnni: bool) -> Peer:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    clock = _Clock()
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        _warm_exporter()
        exported, prepared, quantized = (Path(folder) / f"{stage}.onnx" for stage in ("exported", "prepared", "quantized"))
        with clock("export"):
            _export(model, example, exported)
        with clock("pre-process"):
            quant_pre_process(exported, prepared)
        with clock("calibrate and quantize"):
            quantize_static(
                prepared,
                quantized,
                _Reader(calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=not vnni,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[CALIBRATORS[method]],
                # Batch by batch: the histogram calibrators otherwise hold every activation of every image, and refuse a
                # last batch of another size.
                extra_options={"CalibStridedMinMax": 1},
            )
        with clock("session"):
            run = _session(quantized, threads)
        size = quantized.stat().st_size
    return Peer(f"ONNX Runtime int8 {method}", _versions("onnxruntime"), sum(clock.parts.values()), clock.parts, size, run)


# --- OpenVINO ------------------------------------------------------------------------------------------------------------


def _convert(model: nn.Module, example: Tensor) -> ov.Model:
    import openvino as ov

    converted = ov.convert_model(_eval_copy(model), example_input=example[:1], input=[-1, *example.shape[1:]])
    converted.inputs[0].get_tensor().set_names({INPUT})
    return converted


@functools.cache
def _warm_converter() -> None:
    """As with the exporter: the first conversion in a process imports the frontend."""
    _compile(_convert(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2)), 1)


def _compile(converted: ov.Model, threads: int, batch: int | None = None) -> Run:
    import openvino as ov

    if batch is not None:
        converted = converted.clone()
        converted.reshape([batch, *(int(side.get_length()) for side in list(converted.inputs[0].partial_shape)[1:])])

    compiled = ov.Core().compile_model(
        converted,
        "CPU",
        # Float layers stay float32: on some CPUs the default is bfloat16, which is another model.
        {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"},
    )
    request = compiled.create_infer_request()

    def run(images: np.ndarray) -> np.ndarray:
        request.infer([images], share_inputs=True)
        # The output tensor is the request's own and the next call overwrites it.
        return np.array(request.get_output_tensor().data)

    return run


def _saved_size(converted: ov.Model) -> int:
    import openvino as ov

    with tempfile.TemporaryDirectory() as folder:
        ov.save_model(converted, os.path.join(folder, "model.xml"), compress_to_fp16=False)
        return sum(file.stat().st_size for file in Path(folder).iterdir())


def _openvino_fp32(model: nn.Module, example: Tensor, threads: int, batch: int | None) -> Peer:
    clock = _Clock()
    with _quiet():
        _warm_converter()
        with clock("convert"):
            converted = _convert(model, example)
        with clock("compile"):
            run = _compile(converted, threads, batch)
        size = _saved_size(converted)
    return Peer("OpenVINO fp32", _versions("openvino"), sum(clock.parts.values()), clock.parts, size, run)


def _openvino_int8(model: nn.Module, example: Tensor, calibration: list[np.ndarray], threads: int, vnni: bool, batch: int | None) -> Peer:
    with _quiet():
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    clock = _Clock()
    with _quiet():
        _warm_converter()
        with clock("convert"):
            converted = _convert(model, example)
        with clock("calibrate and quantize"):
            quantized = nncf.quantize(
                converted,
                nncf.Dataset(calibration),
                # NNCF counts data items, and an item is a batch here: every image is used.
                subset_size=len(calibration),
                advanced_parameters=AdvancedQuantizationParameters(
                    # NNCF cannot see in a list that its items are batches. Told so, it takes each image's range by itself, as
                    # it does at batch one.
                    batchwise_statistics=True,
                    overflow_fix=OverflowFix.DISABLE if vnni else OverflowFix.FIRST_LAYER,
                ),
            )
        with clock("compile"):
            run = _compile(quantized, threads, batch)
        size = _saved_size(quantized)
    return Peer("OpenVINO int8 (NNCF)", _versions("openvino", "nncf"), sum(clock.parts.values()), clock.parts, size, run)
