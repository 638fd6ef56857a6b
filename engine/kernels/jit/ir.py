"""What the LLVM IR of rounding and of products has in common: the structure that is passed, a thread's share, vectors of one value."""

from __future__ import annotations

import struct

# Of the structure that is passed: pointers and sizes, eight bytes each.
FIELDS = (
    "x", "weight", "scale", "added", "bias", "y", "q", "low", "steps", "middles", "sums",
    "rows", "out", "inputs", "groups", "size", "span", "middle", "top",
)  # fmt: skip
_POINTERS = 11

HEAD = """
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
declare i64 @llvm.umin.i64(i64, i64)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8>, <32 x i8>)
declare <32 x i8> @llvm.x86.avx2.psign.b(<32 x i8>, <32 x i8>)
declare <32 x i8> @llvm.abs.v32i8(<32 x i8>, i1)
declare <16 x float> @llvm.fabs.v16f32(<16 x float>)
declare <16 x float> @llvm.rint.v16f32(<16 x float>)
declare <16 x float> @llvm.minnum.v16f32(<16 x float>, <16 x float>)
declare <16 x i32> @llvm.fptosi.sat.v16i32.v16f32(<16 x float>)
declare i32 @llvm.vector.reduce.add.v16i32(<16 x i32>)
declare float @llvm.vector.reduce.fadd.v16f32(float, <16 x float>)
declare float @llvm.vector.reduce.fmax.v16f32(<16 x float>)
"""


def vectors(lanes: int) -> str:
    floats = f"<{lanes} x float>"
    return f"""
declare {floats} @llvm.fma.v{lanes}f32({floats}, {floats}, {floats})
declare void @llvm.masked.store.v{lanes}f32.p0({floats}, ptr, i32, <{lanes} x i1>)
"""


def fields() -> list[str]:
    lines = []
    for place, field in enumerate(FIELDS):
        kind = "ptr" if place < _POINTERS else "i64"
        lines += [f"  %p.{field} = getelementptr i64, ptr %a, i64 {place}", f"  %{field} = load {kind}, ptr %p.{field}, align 8"]
    return lines


def share(what: str, lanes: int) -> list[str]:
    """The thread's share of ``%what``, from ``%begin`` to ``%end``; of panels of ``lanes`` outputs where that is not 0."""
    lines = [f"  %more.out = add i64 %out, {lanes - 1}", f"  %{what} = udiv i64 %more.out, {lanes}"] if lanes else []
    return lines + [
        "  %tid32 = call i32 @omp_get_thread_num()",
        "  %count32 = call i32 @omp_get_num_threads()",
        "  %tid = zext i32 %tid32 to i64",
        "  %count = zext i32 %count32 to i64",
        f"  %b0 = mul i64 %{what}, %tid",
        "  %begin = udiv i64 %b0, %count",
        "  %tid.next = add i64 %tid, 1",
        f"  %e0 = mul i64 %{what}, %tid.next",
        "  %end = udiv i64 %e0, %count",
    ]


def broadcast(name: str, value: str, kind: str, lanes: int) -> list[str]:
    vector = f"<{lanes} x {kind}>"
    return [f"  %{name}.one = insertelement {vector} poison, {kind} {value}, i32 0",
            f"  %{name} = shufflevector {vector} %{name}.one, {vector} poison, <{lanes} x i32> zeroinitializer"]  # fmt: skip


def constant(value: int, kind: str, count: int) -> str:
    return f"<{', '.join([f'{kind} {value}'] * count)}>"


def hexadecimal(value: float) -> str:
    """``value``, rounded to float32, as LLVM writes a constant."""
    single = struct.unpack("<f", struct.pack("<f", value))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', single))[0]:016X}"
