"""The LLVM IR that rounds a few rows of inputs, each group by its largest magnitude."""

from __future__ import annotations

from typing import Literal

from engine.kernels.jit.ir import HEAD, broadcast, constant, fields, hexadecimal, share, vectors

# What inputs are rounded to: int8 from 8 bits or fewer; 16 bits in one word; or in two signed bytes, which TOP leaves room for.
Rounded = Literal["bytes", "words", "halves"]
LARGEST: dict[Rounded, int] = {"bytes": 127, "words": 32767, "halves": 127 * 256 + 127}
# Steps below divide no number by zero; equal to engine.numerics.float_activations.TINY.
TINY = 1e-30
# Floats that are rounded at a time.
LANES = 16


def rounding(name: str, rounded: Rounded) -> str:
    """IR of ``void name(ptr)``, one thread's part: float32 ``x`` (rows, inputs) to integers ``q``, in halves to ``q`` and ``low``.

    Each ``span`` of inputs has a step, its largest magnitude over ``top``; ``steps`` (rows, groups) names it for each group of ``size``,
    which divides the span. ``sums`` are those of a group, of ``x`` itself where it is rounded to 16 bits, else of what it is rounded to;
    ``middles`` the sum of a group's integers times ``-middle``. The step of what holds no number is none."""
    floats, ints = f"<{LANES} x float>", f"<{LANES} x i32>"
    lines = [HEAD, vectors(LANES), f"define void @{name}(ptr %a) {{", "entry:", *fields()]
    lines += [
        "  %top32 = trunc i64 %top to i32",
        "  %top.f = sitofp i32 %top32 to float",
        *broadcast("top.v", "%top.f", "float", LANES),
        "  %middle32 = trunc i64 %middle to i32",
        "  %minus = sub i32 0, %middle32",
        "  %cells = mul i64 %rows, %inputs",
        "  %spans = udiv i64 %cells, %span",
        *share("spans", 0),
        "  %some = icmp ult i64 %begin, %end",
        "  br i1 %some, label %span.start, label %done",
        "span.start:",
        "  %s = phi i64 [ %begin, %entry ], [ %s.next, %span.end ]",
        "  %start = mul i64 %s, %span",
        "  %stop = add i64 %start, %span",
        "  br label %look",
        "look:",
        "  %k = phi i64 [ %start, %span.start ], [ %k.next, %look ]",
        f"  %max = phi {floats} [ zeroinitializer, %span.start ], [ %max.next, %look ]",
        f"  %none = phi {floats} [ zeroinitializer, %span.start ], [ %none.next, %look ]",
        "  %xp = getelementptr float, ptr %x, i64 %k",
        f"  %xv = load {floats}, ptr %xp, align 4",
        f"  %size.v = call {floats} @llvm.fabs.v{LANES}f32({floats} %xv)",
        f"  %more = fcmp ogt {floats} %size.v, %max",
        f"  %max.next = select <{LANES} x i1> %more, {floats} %size.v, {floats} %max",
        # Zero of a number, and of an infinity or none no number.
        f"  %nil = fsub {floats} %xv, %xv",
        f"  %none.next = fadd {floats} %none, %nil",
        f"  %k.next = add i64 %k, {LANES}",
        "  %k.more = icmp ult i64 %k.next, %stop",
        "  br i1 %k.more, label %look, label %scale.it",
        "scale.it:",
        f"  %largest = call float @llvm.vector.reduce.fmax.v{LANES}f32({floats} %max.next)",
        f"  %nothing = call reassoc float @llvm.vector.reduce.fadd.v{LANES}f32(float 0.0, {floats} %none.next)",
        "  %ratio = fdiv float %largest, %top.f",
        f"  %small = fcmp olt float %ratio, {hexadecimal(TINY)}",
        f"  %step = select i1 %small, float {hexadecimal(TINY)}, float %ratio",
        "  %told = fadd float %step, %nothing",
        *broadcast("step.v", "%step", "float", LANES),
        "  br label %group",
        "group:",
        "  %from = phi i64 [ %start, %scale.it ], [ %to, %group.end ]",
        "  %to = add i64 %from, %size",
        "  br label %round",
        "round:",
        "  %j = phi i64 [ %from, %group ], [ %j.next, %round ]",
        f"  %tally = phi {ints} [ zeroinitializer, %group ], [ %tally.next, %round ]",
        f"  %sum = phi {floats} [ zeroinitializer, %group ], [ %sum.next, %round ]",
        "  %yp = getelementptr float, ptr %x, i64 %j",
        f"  %yv = load {floats}, ptr %yp, align 4",
        f"  %sum.next = fadd {floats} %sum, %yv",
        f"  %part = fdiv {floats} %yv, %step.v",
        f"  %near = call {floats} @llvm.rint.v{LANES}f32({floats} %part)",
        f"  %bound = call {floats} @llvm.minnum.v{LANES}f32({floats} %near, {floats} %top.v)",
        f"  %int = call {ints} @llvm.fptosi.sat.v{LANES}i32.v{LANES}f32({floats} %bound)",
        f"  %tally.next = add {ints} %tally, %int",
        *_stored(rounded),
        f"  %j.next = add i64 %j, {LANES}",
        "  %j.more = icmp ult i64 %j.next, %to",
        "  br i1 %j.more, label %round, label %group.end",
        "group.end:",
        "  %g = udiv i64 %from, %size",
        f"  %all = call i32 @llvm.vector.reduce.add.v{LANES}i32({ints} %tally.next)",
        "  %mid = mul i32 %all, %minus",
        "  %mp = getelementptr i32, ptr %middles, i64 %g",
        "  store i32 %mid, ptr %mp, align 4",
        "  %tp = getelementptr float, ptr %steps, i64 %g",
        "  store float %told, ptr %tp, align 4",
    ]
    if rounded == "bytes":
        lines += ["  %all.f = sitofp i32 %all to float", "  %total = fmul float %all.f, %told"]
    else:
        lines.append(f"  %total = call reassoc float @llvm.vector.reduce.fadd.v{LANES}f32(float 0.0, {floats} %sum.next)")
    lines += [
        "  %sp = getelementptr float, ptr %sums, i64 %g",
        "  store float %total, ptr %sp, align 4",
        "  %g.more = icmp ult i64 %to, %stop",
        "  br i1 %g.more, label %group, label %span.end",
        "span.end:",
        "  %s.next = add i64 %s, 1",
        "  %s.more = icmp ult i64 %s.next, %end",
        "  br i1 %s.more, label %span.start, label %done",
        "done:",
        "  ret void",
        "}",
    ]
    return "\n".join(lines)


def _stored(rounded: Rounded) -> list[str]:
    """``%int`` at ``%j``."""
    ints, shorts, bytes_ = (f"<{LANES} x {kind}>" for kind in ("i32", "i16", "i8"))
    if rounded == "words":
        return [f"  %cut = trunc {ints} %int to {shorts}", "  %qp = getelementptr i16, ptr %q, i64 %j",
                f"  store {shorts} %cut, ptr %qp, align 2"]  # fmt: skip
    place = "  %qp = getelementptr i8, ptr %q, i64 %j"
    if rounded == "bytes":
        return [f"  %cut = trunc {ints} %int to {bytes_}", place, f"  store {bytes_} %cut, ptr %qp, align 1"]
    return [
        # The lower byte is signed: what is above 127 is taken from the upper one.
        f"  %lower = trunc {ints} %int to {bytes_}",
        f"  %signed = sext {bytes_} %lower to {ints}",
        f"  %without = sub {ints} %int, %signed",
        f"  %moved = ashr {ints} %without, {constant(8, 'i32', LANES)}",
        f"  %upper = trunc {ints} %moved to {bytes_}",
        place,
        f"  store {bytes_} %upper, ptr %qp, align 1",
        "  %lp = getelementptr i8, ptr %low, i64 %j",
        f"  store {bytes_} %lower, ptr %lp, align 1",
    ]
