"""What is told of a machine, from files and drivers that stand for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.machine import gpus, processor
from engine.runs import examine

XEON = "".join(
    f"processor\t: {i}\nmodel name\t: Big  Xeon\nphysical id\t: {i // 4}\ncore id\t: {i % 2}\n"
    "flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8\n\n"
    for i in range(8)
)


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(XEON)
    monkeypatch.setattr(processor, "_CPUINFO", path)
    monkeypatch.setattr(processor.platform, "machine", lambda: "x86_64")
    return path


def test_a_processor_tells_its_name_what_it_knows_and_its_cores(cpuinfo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(processor.os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    monkeypatch.setattr(processor, "container_limit", lambda: 1.5)
    assert processor.name() == "Big Xeon"
    assert [name for name, there in processor.features().items() if there] == ["avx2", "avx512f", "avx512_vnni", "amx_int8"]
    assert processor.cores() == {"processors": 8, "physical": 4, "allowed": 2, "container": 1.5}


def test_a_system_that_tells_nothing(cpuinfo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_CPUINFO", cpuinfo / "none")
    monkeypatch.setattr(processor.platform, "processor", lambda: "")
    monkeypatch.delattr(processor.os, "sched_getaffinity", raising=False)
    assert processor.name() is None and processor.features() == {}
    assert processor.cores()["physical"] is None and processor.cores()["allowed"] is None


def test_an_arm_is_asked_for_what_arms_have(cpuinfo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    monkeypatch.setattr(processor.platform, "machine", lambda: "aarch64")
    assert processor.features() == {"asimddp": True, "i8mm": True, "bf16": False, "sve": False}


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "rubbish"}, None),
        ({}, None),
    ],
)
def test_a_containers_limit(tmp_path: Path, files: dict[str, str], limit: float | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert processor.container_limit(tmp_path) == limit


def test_gpus_tell_what_they_multiply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "is_available": True, "device_count": 2, "mem_get_info": (1, 2), "get_device_name": "H", "get_device_capability": (9, 0),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    one = {"name": "H", "free_bytes": 1, "total_bytes": 2, "capability": "9.0", "int8": True, "bfloat16": True}
    assert gpus.gpus() == [one, one]

    def taken(index: int) -> Any:
        raise RuntimeError("CUDA error:\n  device busy")

    monkeypatch.setattr(torch.cuda, "mem_get_info", taken)
    assert gpus.gpus() == [{"name": "unusable", "error": "CUDA error: device busy"}]
    monkeypatch.setattr(gpus, "_DRIVER", tmp_path / "version")
    assert gpus.driver() is None
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23\n")
    assert gpus.driver() == "580.95.05"


@pytest.mark.parametrize(
    ("capability", "int8", "bfloat16"), [((6, 1), False, False), ((7, 0), False, False), ((7, 5), True, False), ((8, 0), True, True)]
)
def test_units_by_capability(capability: tuple[int, int], int8: bool, bfloat16: bool) -> None:
    assert gpus.units(*capability) == {"int8": int8, "bfloat16": bfloat16}


@pytest.mark.parametrize(
    ("version", "inside"), [("2.10.9", False), ("2.11.0", True), ("2.15.0+cu132", True), ("2.16.0.dev20270101", False), ("3.0", False)]
)
def test_the_tested_range_is_the_programs_own_requirement(monkeypatch: pytest.MonkeyPatch, version: str, inside: bool) -> None:
    monkeypatch.setattr(examine, "requires", lambda name: ["torchvision<0.31,>=0.26", "torch<2.16,>=2.11", "rich"])
    assert examine.tested(version) == {"range": ">=2.11, <2.16", "inside": inside}


def test_a_program_that_is_not_installed_has_no_range(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise examine.PackageNotFoundError(name)

    monkeypatch.setattr(examine, "requires", missing)
    assert examine.tested("2.15.0") is None
    monkeypatch.setattr(examine, "requires", lambda name: None)
    assert examine.tested("2.15.0") is None
