"""What doctor says, from facts that are given: pure functions."""

from __future__ import annotations

import io
from typing import Any

import pytest
from scripted_engine import MACHINE

from qtui.machine_words import moved, sections
from qtui.screen import Screen

FULL = {
    **MACHINE,
    "torch_tested": {"range": ">=2.11, <2.16", "inside": True}, "features": {"avx2": True, "avx512_vnni": True, "amx_int8": False},
    "processors": 8, "physical": 4, "allowed": 8, "container": None, "integer": True,
    "packages": {"onnx": "1.23", "openvino": None}, "purposes": {"openvino": "runs OpenVINO exports"},
    "install": "uv pip install openvino", "free_bytes": {"cache": 5_000_000_000},
}  # fmt: skip
GPU = {"name": "H", "free_bytes": 2**30, "total_bytes": 2**31, "capability": "9.0", "int8": True, "bfloat16": True}


def told(**changes: Any) -> dict[str, dict[str, str]]:
    return {title: dict(lines) for title, lines in sections({**FULL, **changes})}


def test_a_whole_machine() -> None:
    found = told()
    assert found["versions"]["torch"] == "2.15.0, tested with >=2.11, <2.16"
    assert found["processor"]["VNNI"] == "yes, used by the kernels"
    assert found["processor"]["has"] == "avx2, avx512_vnni" and found["processor"]["has not"] == "amx_int8"
    assert found["processor"]["cores"] == "8 processors, 4 physical cores" and found["processor"]["threads"] == "2 used by torch"
    assert found["optional packages"] == {
        "onnx": "1.23", "openvino": "not installed, runs OpenVINO exports", "install": "uv pip install openvino",
    }  # fmt: skip
    assert found["folders"]["cache"] == "cache, 5.0 GB free" and found["folders"]["runs"] == "runs"


def test_what_the_processor_reached_is_told_where_it_was_measured() -> None:
    limits = {"threads": 2, "kernel": "dnnl", "peak_ops_per_s": 312.4e9, "read_bytes_per_s": 20.04e9}
    found = told(limits=limits)["processor"]
    assert found["int8 peak"] == "312 GOP/s, measured in a large product of dnnl" and found["memory"] == "20.0 GB/s, a plain read"
    assert "int8 peak" not in told(limits=None)["processor"]


def test_formats_that_run_and_those_that_are_only_stored_are_told_apart() -> None:
    from engine.recipe.number_formats import NUMBER_FORMATS, stored_only

    formats = {"kernels": "int2 to int8", "stored": stored_only()}
    lines = next(lines for title, lines in sections({**FULL, "formats": formats}) if title == "number formats")
    assert lines[0] == ("on kernels", "int2 to int8: 4-bit weights as nibbles, other widths held as int8")
    words = " ".join(value for _, value in lines[1:])
    assert all(f"{name}," in words or f"{name}:" in words for name in NUMBER_FORMATS)
    assert ("stored", "fp8_e4m3, mxfp8, nvfp4: for vLLM, SGLang; computed in float32 here") in lines
    assert next(value for _, value in lines if "q4_k" in value).endswith("for llama.cpp; computed in float32 here")
    assert "number formats" not in told()


def test_whatever_kernels_were_probed_are_told_with_their_reason() -> None:
    found = told(kernels={"a new one": None, "another": "off by 3 steps"})["integer kernels"]
    assert found == {"a new one": "exact", "another": "off by 3 steps"}
    assert "simulated" in told(integer=False, kernels={})["integer kernels"]["none"]


def test_what_does_not_fit_is_said() -> None:
    assert (
        "not tested: this program is tested with >=2.11"
        in told(torch_tested={"range": ">=2.11, <2.16", "inside": False})["versions"]["torch"]
    )
    assert "ONEDNN_MAX_CPU_ISA" in told(vnni=False)["processor"]["VNNI"]
    assert told(vnni=False, features={"avx2": True})["processor"]["VNNI"] == "no"
    limited = told(allowed=4, container=1.5)["processor"]
    assert "4 allowed to this process, the container's limit is 1.5" in limited["cores"] and "more than the 1.5" in limited["threads"]
    assert told(saturates=True)["processor"]["activations"].startswith("7 bits")


def test_gpus_say_what_they_are_for() -> None:
    lines = dict(
        sections({**FULL, "gpus": [GPU], "driver": "580.1", "cuda": "13.2", "gpu_kernels": {"int_mm": None, "int4pack": "off by 3%"}})
    )["GPUs"]
    assert ("int_mm", "right") in lines and ("int4pack", "off by 3%") in lines
    assert lines[0] == ("H", "1.0 of 2.0 GiB free") and lines[1][1] == "compute capability 9.0, matrix units for int8 and bfloat16"
    assert ("driver", "580.1, torch is built for CUDA 13.2") in lines and "through an export" in lines[-1][1]
    assert told(gpus=[{"name": "unusable", "error": "taken"}])["GPUs"]["unusable"] == "taken"
    assert "on the processor" in told(gpus=[])["GPUs"]["none"]


def test_a_terminal_of_80_columns_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    screen = Screen(stream)
    long = "word " * 40
    screen.entry("name", long, 10)
    lines = stream.getvalue().splitlines()
    assert len(lines) > 2 and all(len(line) <= 80 for line in lines)
    assert lines[0].startswith("  name        word") and all(line.startswith(" " * 14 + "word") for line in lines[1:])


@pytest.mark.parametrize(
    ("environment", "warned"),
    [
        ({"isa": "AVX512", "vnni": True}, False),
        ({"isa": "AVX512", "vnni": False}, True),
        ({"isa": "AVX2", "vnni": False}, True),
        ({}, False),
    ],
)
def test_a_report_from_another_machine_is_told_of(environment: dict[str, Any], warned: bool) -> None:
    text = moved(MACHINE, environment)
    assert bool(text) is warned and (not warned or ("AVX512, VNNI" in text and "speed and rounding differ" in text))
    assert moved(None, environment) == ""
