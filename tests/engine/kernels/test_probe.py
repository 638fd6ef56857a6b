"""The probe tells what runs, survives what crashes, and asks once."""

import json
import os
import subprocess

import pytest
import torch

from engine.kernels import probe as probing
from engine.kernels.choose import kernels_for, why_simulated
from engine.kernels.dnnl.library import path
from engine.kernels.probe import FAMILIES, KERNELS, Machine, probe

needs_onednn = pytest.mark.skipif(not hasattr(torch.ops.onednn, "qconv_pointwise"), reason="torch without oneDNN's integer operations")


def has_vnni():
    return bool(getattr(torch.cpu, "_is_vnni_supported", lambda: False)())


needs_vnni = pytest.mark.skipif(not has_vnni(), reason="no VNNI to switch off")


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path / "cache"))
    probing._probe.cache_clear()
    yield tmp_path / "cache"
    probing._probe.cache_clear()


class Runs:
    """Stands in for ``subprocess.run``: the child runs ``before`` first. Counts the calls."""

    def __init__(self, before="", fake=None):
        self.before, self.fake, self.calls, self.real = before, fake, 0, subprocess.run

    def __call__(self, command, **options):
        self.calls += 1
        if self.fake is not None:
            return subprocess.CompletedProcess(command, 0, self.fake, "")
        return self.real([*command[:-1], f"{self.before}\n{command[-1]}"], **options)


def told(**errors):
    """What a child says where torch's kernels run, with ``errors``, and the package of the others is not installed."""
    about = [{"isa": "AVX2", "vnni": False}]
    errors = dict.fromkeys(FAMILIES["dnnl"], "not installed") | errors
    return "\n".join(json.dumps(line) for line in about + [{"kernel": k, "error": errors.get(k)} for k in KERNELS] + [{"saturates": False}])


def use(monkeypatch, runs):
    monkeypatch.setattr(probing.subprocess, "run", runs)
    return runs


@needs_onednn
def test_a_real_child_found_from_any_folder(fresh_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    machine = probe()
    assert machine.isa == torch.backends.cpu.get_cpu_capability()
    assert set(machine.kernels) == set(KERNELS)
    assert machine.saturates in (True, False)
    assert machine.activation_bits == (7 if machine.saturates else 8)
    if has_vnni() and "ONEDNN_MAX_CPU_ISA" not in os.environ:
        assert machine.vnni
        assert machine.saturates is False
    (kept,) = fresh_cache.iterdir()
    assert Machine(**json.loads(kept.read_text())) == machine


def test_asked_once_and_kept_between_processes(monkeypatch, fresh_cache):
    runs = use(monkeypatch, Runs(fake=told()))
    first = probe()
    assert first.integer
    assert probe() == first
    probing._probe.cache_clear()
    assert probe() == first
    assert runs.calls == 1


def test_refresh_asks_again_and_replaces_the_answer(monkeypatch):
    runs = use(monkeypatch, Runs(fake=told()))
    assert probe().integer
    runs.fake = told(qlinear_pointwise="off by 3 steps")
    assert probe().integer
    for _ in range(2):
        assert not probe(refresh=True).integer
    assert runs.calls == 3
    assert not probe().integer
    assert runs.calls == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"isa": 1}', '{"unknown": 2}', "null"])
def test_a_damaged_cache_is_asked_anew(monkeypatch, fresh_cache, content):
    runs = use(monkeypatch, Runs(fake=told()))
    probe()
    (kept,) = fresh_cache.iterdir()
    kept.write_text(content)
    probing._probe.cache_clear()
    assert probe().integer
    assert runs.calls == 2


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QTUI_CACHE", str(tmp_path / "file" / "below"))
    use(monkeypatch, Runs(fake=told()))
    assert probe().integer


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"])
def test_the_key_follows_the_environment(monkeypatch, name):
    before = probing._key()
    monkeypatch.setenv(name, "SSE41")
    assert probing._key() != before


def child(change):
    """Code that changes the child's module before its main runs."""
    return f"import os\nfrom engine.kernels import probe_child\n{change}"


@needs_onednn
def test_a_wrong_kernel_is_reported_and_a_crash_survived_and_named(monkeypatch):
    change = """
real = probe_child.OneDNN.build
def build(self, layer):
    run = real(self, layer)
    return (lambda *t: run(*t) ^ 8) if layer.accumulate else run
probe_child.OneDNN.build = build
probe_child._linear = lambda kernel: os.abort()
"""
    use(monkeypatch, Runs(before=child(change)))
    machine = probe()
    assert machine.kernels["qconv_pointwise"] is None
    assert machine.kernels["qconv2d_pointwise.binary"] == "off by 8 steps"
    assert "crashed the probe (exit code -6)" in machine.kernels["qlinear_pointwise"]
    assert machine.saturates is None
    assert not machine.integer
    assert [kernel.name for kernel in kernels_for(machine)] == ["simulation"]
    assert "off by 8 steps" in why_simulated(machine)


def test_absent_operations_are_skipped_cleanly(monkeypatch):
    change = """
class Nothing:
    def __getattr__(self, name):
        raise AttributeError(f"torch has\\n  no {name}")
import torch
torch.ops.onednn = Nothing()
"""
    use(monkeypatch, Runs(before=child(change)))
    machine = probe()
    assert machine.isa == torch.backends.cpu.get_cpu_capability()
    assert all("torch has no q" in machine.kernels[name] for name in FAMILIES["onednn"])
    assert machine.runs("dnnl") == (path() is not None)
    assert (machine.saturates is None) == (path() is None)


def test_what_a_terminal_sends_is_no_crash_of_a_kernel(monkeypatch):
    """A Ctrl-C reaches all processes of its group, and what the probe has found is kept for the next runs."""
    use(monkeypatch, Runs(before=child(f"if os.getpgrp() == {os.getpgrp()}: os.abort()")))
    assert not any("crashed" in str(said) for said in probe().kernels.values())


def test_a_crash_of_one_family_says_nothing_of_the_next(monkeypatch):
    change = """
real = probe_child.OneDNN.build
probe_child.OneDNN.build = lambda *_: os.abort()
"""
    runs = use(monkeypatch, Runs(before=child(change)))
    machine = probe()
    assert runs.calls == 2
    assert all("crashed the probe" in machine.kernels[name] for name in FAMILIES["onednn"])
    assert machine.runs("dnnl") == (path() is not None)
    assert [kernel.name for kernel in kernels_for(machine)] == ["dnnl"] * machine.runs("dnnl") + ["simulation"]


def test_without_the_package_torchs_kernels_serve(monkeypatch):
    change = "from engine.kernels.dnnl import library\nlibrary.path = lambda: None"
    use(monkeypatch, Runs(before=child(change)))
    machine = probe()
    assert all("onednn-cpu-gomp is not installed" in machine.kernels[name] for name in FAMILIES["dnnl"])
    assert "dnnl" not in [kernel.name for kernel in kernels_for(machine)]


def test_a_child_that_does_not_start_is_asked_again_the_next_time(monkeypatch, fresh_cache):
    def fails(command, **options):
        raise subprocess.TimeoutExpired(command, 1)

    use(monkeypatch, fails)
    machine = probe()
    assert not machine.integer
    assert all("TimeoutExpired" in error for error in machine.kernels.values())
    assert not fresh_cache.exists()
    probing._probe.cache_clear()
    use(monkeypatch, Runs(fake=told()))
    assert probe().integer


@needs_onednn
@needs_vnni
def test_saturation_is_found_where_the_wide_instructions_are_off(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    machine = probe()
    assert machine.saturates is True
    assert machine.activation_bits == 7
    assert not machine.vnni
    assert machine.integer


def test_where_saturation_is_not_known_the_safe_width_is_taken():
    exact = dict.fromkeys(KERNELS)
    assert Machine("AVX2", False, None, exact).activation_bits == 7
    assert Machine("AVX2", False, False, exact).activation_bits == 8
    assert Machine("unknown", False, None, dict.fromkeys(KERNELS, "missing")).activation_bits == 8
