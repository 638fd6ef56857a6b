"""LLVM IR to functions of this process, by llvmlite: compiled once for a processor and kept as an object file.

llvmlite is optional (extra ``fast``) and imported when the first kernel is asked for. Loops run on the OpenMP threads that torch and
oneDNN have: threads of another pool would wait for the same cores.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
from functools import lru_cache
from typing import Any

from engine.errors import EngineError
from engine.kernels.dnnl.library import library
from engine.paths import cache_dir, write_atomic

PACKAGE, SWITCH = "llvmlite", "QTUI_COMPILED"
_OPENMP = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
_MOST = 1 << 22


def missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0 switches compiled kernels off"
    if importlib.util.find_spec(PACKAGE) is None:
        return f"{PACKAGE} is not installed"
    try:
        library()
    except EngineError as error:
        return str(error)
    return None


def version() -> str:
    """That of llvmlite; empty where there is none."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return ""


class Compiler:
    """Functions stay in memory as long as the compiler. Raises EngineError where the IR is wrong or llvmlite is missing."""

    def __init__(self) -> None:
        if (why := missing()) is not None:
            raise EngineError(f"{why}: uv pip install {PACKAGE}")
        llvm: Any = importlib.import_module(f"{PACKAGE}.binding")
        self._llvm = llvm
        with contextlib.suppress(RuntimeError):
            # Newer versions do it by themselves and refuse the call.
            llvm.initialize()
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self.processor = llvm.get_host_cpu_name()
        features = llvm.get_host_cpu_features()
        self.wide = bool(features.get("avx512bw") and features.get("avx512vl"))
        self.dots = bool(features.get("avx512vnni") and self.wide) or bool(features.get("avxvnni"))
        self._features = features.flatten()
        target = llvm.Target.from_default_triple()
        self._machine = target.create_target_machine(cpu=self.processor, features=self._features, opt=3, jit=True)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self._machine)
        dll = library().shared
        for name in _OPENMP:
            address = ctypes.cast(getattr(dll, name), ctypes.c_void_p).value
            llvm.add_symbol(name, address)
        self.parallel_address: int = ctypes.cast(dll.GOMP_parallel, ctypes.c_void_p).value or 0

    def address(self, name: str, ir: str) -> int:
        """Of the function ``name`` that ``ir`` defines."""
        where = cache_dir() / "jit" / f"{self._key(ir)}.o"
        llvm = self._llvm
        try:
            code = where.read_bytes()
            if not 0 < len(code) < _MOST:
                raise OSError("no object file of ours")
        except OSError:
            code = self._compiled(ir)
            with contextlib.suppress(OSError):
                where.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(where, code)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        found: int = self._engine.get_function_address(name)
        if not found:
            raise EngineError(f"the compiled code has no {name}")
        return found

    def _compiled(self, ir: str) -> bytes:
        llvm = self._llvm
        try:
            module = llvm.parse_assembly(ir)
            module.verify()
        except RuntimeError as error:
            raise EngineError(f"LLVM does not take a kernel: {error}") from error
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        builder = llvm.create_pass_builder(self._machine, options)
        builder.getModulePassManager().run(module, builder)
        code: bytes = self._machine.emit_object(module)
        return code

    def _key(self, ir: str) -> str:
        return hashlib.sha256("\n".join((version(), self.processor, self._features, ir)).encode()).hexdigest()[:24]


@lru_cache(maxsize=1)
def compiler() -> Compiler:
    return Compiler()
