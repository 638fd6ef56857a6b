"""The LLVM IR of a few rows in float32 times int8 or int4 weights: each weight is read once from memory, which is what such a product
waits for. A panel of rows of the weight shares what it reads of the inputs.

int8 is widened to float32. Of int4 there are twice as many to a byte, so that widening would take longer than reading: the inputs of
each group are rounded to 16 bits of their largest magnitude instead, and pairs of products are added as integers (PMADDWD).
"""

from __future__ import annotations

LANES = 16
_VECTOR = f"<{LANES} x float>"
_FLOATS = f"<{LANES} x i32>"
_BYTES = f"<{LANES} x i8>"
# Of 16 bits; sums of products with 8 fit 32 bits in groups up to this size. Codes lie around the middle.
TOP, LARGEST_GROUP, MIDDLE = 32767, 1 << 12, 8

_HEAD = """
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
declare float @llvm.fma.f32(float, float, float)
declare float @llvm.vector.reduce.fadd.v16f32(float, <16 x float>)
declare <8 x float> @llvm.fma.v8f32(<8 x float>, <8 x float>, <8 x float>)
declare <8 x float> @llvm.masked.load.v8f32.p0(ptr, i32, <8 x i1>, <8 x float>)
declare float @llvm.vector.reduce.fadd.v8f32(float, <8 x float>)
declare float @llvm.vector.reduce.fmax.v16f32(<16 x float>)
declare <16 x float> @llvm.fabs.v16f32(<16 x float>)
declare <16 x float> @llvm.rint.v16f32(<16 x float>)
declare <16 x float> @llvm.minnum.v16f32(<16 x float>, <16 x float>)
declare <16 x i32> @llvm.fptosi.sat.v16i32.v16f32(<16 x float>)
declare i32 @llvm.vector.reduce.add.v16i32(<16 x i32>)
declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)
declare <16 x i32> @llvm.x86.avx512.pmaddw.d.512(<32 x i16>, <32 x i16>)
declare i64 @llvm.umin.i64(i64, i64)
"""
# Of the structure that is passed: pointers and sizes, eight bytes each.
FIELDS = (
    "x",
    "weight",
    "scale",
    "added",
    "bias",
    "y",
    "sums",
    "q",
    "steps",
    "middles",
    "rows",
    "out",
    "inputs",
    "groups",
    "size",
    "padded",
)
_POINTERS = 10


def half(wide: bool) -> int:
    """How many low nibbles lie before as many high ones are read."""
    return 32 if wide else 16


def _fields() -> list[str]:
    lines = []
    for place, field in enumerate(FIELDS):
        kind = "ptr" if place < _POINTERS else "i64"
        lines += [f"  %p.{field} = getelementptr i64, ptr %a, i64 {place}", f"  %{field} = load {kind}, ptr %p.{field}"]
    return lines


def function(name: str, bits: int, panel: int, wide: bool) -> str:
    """IR of ``void name(ptr)``, one thread's part of ``y = x @ weight.T`` within a parallel region.

    ``x`` is float32 (rows, inputs), ``y`` (rows, out), ``bias`` (out,). With 8 bits ``weight`` is int8 (out, inputs), ``scale`` float32
    (out,) and inputs a multiple of 16. With 4 bits ``weight`` is uint8 (out, inputs / 2), the first ``half`` of twice as many values in
    the low nibbles; ``scale`` and ``added`` are bfloat16 (out, groups), the latter's rows filled to ``padded``, a
    multiple of 8, with zeros; groups are of ``size`` inputs; a weight is ``(q - 8) * scale + added``.
    ``q``, ``steps``, ``middles`` and ``sums`` are then what ``rounding`` makes of ``x``. ``wide`` is for AVX-512.
    """
    lines = [_HEAD, f"define void @{name}(ptr %a) {{", "entry:", *_fields()]
    lines += [
        "  %tid32 = call i32 @omp_get_thread_num()",
        "  %count32 = call i32 @omp_get_num_threads()",
        "  %tid = zext i32 %tid32 to i64",
        "  %count = zext i32 %count32 to i64",
        "  %last = sub i64 %out, 1",
        f"  %more = add i64 %out, {panel - 1}",
        f"  %panels = udiv i64 %more, {panel}",
        "  %b0 = mul i64 %panels, %tid",
        "  %begin = udiv i64 %b0, %count",
        "  %next = add i64 %tid, 1",
        "  %e0 = mul i64 %panels, %next",
        "  %end = udiv i64 %e0, %count",
        "  %some = icmp ult i64 %begin, %end",
        "  br i1 %some, label %panel, label %done",
        "panel:",
        "  %p = phi i64 [ %begin, %entry ], [ %p.next, %panel.end ]",
        f"  %first = mul i64 %p, {panel}",
    ]
    for r in range(panel):
        # Rows past the end are the last one again, which is written again.
        lines += [f"  %u{r} = add i64 %first, {r}", f"  %r{r} = call i64 @llvm.umin.i64(i64 %u{r}, i64 %last)"]
        lines += _pointers(r, bits)
    lines += ["  br label %row", "row:", "  %m = phi i64 [ 0, %panel ], [ %m.next, %row.end ]", "  %xo = mul i64 %m, %inputs",
              "  %xm = getelementptr float, ptr %x, i64 %xo"]  # fmt: skip
    lines += _int8(panel) if bits == 8 else _int4(panel, wide)
    lines += ["  %yo = mul i64 %m, %out", "  %ym = getelementptr float, ptr %y, i64 %yo"]
    for r in range(panel):
        lines += [
            f"  %bp{r} = getelementptr float, ptr %bias, i64 %r{r}",
            f"  %bv{r} = load float, ptr %bp{r}",
            f"  %full{r} = fadd float %sum{r}, %bv{r}",
            f"  %yp{r} = getelementptr float, ptr %ym, i64 %r{r}",
            f"  store float %full{r}, ptr %yp{r}",
        ]
    lines += [
        "  br label %row.end",
        "row.end:",
        "  %m.next = add i64 %m, 1",
        "  %m.more = icmp ult i64 %m.next, %rows",
        "  br i1 %m.more, label %row, label %panel.end",
        "panel.end:",
        "  %p.next = add i64 %p, 1",
        "  %p.more = icmp ult i64 %p.next, %end",
        "  br i1 %p.more, label %panel, label %done",
        "done:",
        "  ret void",
        "}",
    ]
    return "\n".join(lines)


def _pointers(r: int, bits: int) -> list[str]:
    wide = [f"  %wb{r} = mul i64 %r{r}, %inputs"]
    if bits == 4:
        wide += [f"  %wo{r} = lshr i64 %wb{r}, 1", f"  %go{r} = mul i64 %r{r}, %groups"]
        wide += [f"  %sp{r} = getelementptr i16, ptr %scale, i64 %go{r}", f"  %ao{r} = mul i64 %r{r}, %padded"]
        wide += [f"  %ap{r} = getelementptr i16, ptr %added, i64 %ao{r}"]
    else:
        wide += [f"  %wo{r} = add i64 %wb{r}, 0", f"  %sp{r} = getelementptr float, ptr %scale, i64 %r{r}"]
    return [*wide, f"  %w{r} = getelementptr i8, ptr %weight, i64 %wo{r}"]


def _int8(panel: int) -> list[str]:
    lines = ["  br label %inner", "inner:", "  %k = phi i64 [ 0, %row ], [ %k.next, %inner ]"]
    lines += [f"  %acc{r} = phi {_VECTOR} [ zeroinitializer, %row ], [ %acc.next{r}, %inner ]" for r in range(panel)]
    lines += ["  %xk = getelementptr float, ptr %xm, i64 %k", f"  %xv = load {_VECTOR}, ptr %xk, align 4"]
    for r in range(panel):
        lines += [
            f"  %wk{r} = getelementptr i8, ptr %w{r}, i64 %k",
            f"  %wv{r} = load {_BYTES}, ptr %wk{r}, align 1",
            f"  %wi{r} = sext {_BYTES} %wv{r} to {_FLOATS}",
            f"  %wf{r} = sitofp {_FLOATS} %wi{r} to {_VECTOR}",
            f"  %acc.next{r} = call {_VECTOR} @llvm.fma.v16f32({_VECTOR} %wf{r}, {_VECTOR} %xv, {_VECTOR} %acc{r})",
        ]
    lines += [
        f"  %k.next = add i64 %k, {LANES}",
        "  %k.more = icmp ult i64 %k.next, %inputs",
        "  br i1 %k.more, label %inner, label %out8",
        "out8:",
    ]
    for r in range(panel):
        lines += [
            f"  %all{r} = call reassoc float @llvm.vector.reduce.fadd.v16f32(float 0.0, {_VECTOR} %acc.next{r})",
            f"  %sv{r} = load float, ptr %sp{r}",
            f"  %sum{r} = fmul float %all{r}, %sv{r}",
        ]
    return lines


def _int4(panel: int, wide: bool) -> list[str]:
    sums, multiply = ("<16 x i32>", "@llvm.x86.avx512.pmaddw.d.512") if wide else ("<8 x i32>", "@llvm.x86.avx2.pmadd.wd")
    count = 32 if wide else 16
    words, halves, total = f"<{count} x i16>", f"<{count} x i8>", f"<{count // 2} x float>"
    fma, reduce = (f"{name}.v{count // 2}f32" for name in ("@llvm.fma", "@llvm.vector.reduce.fadd"))
    lines = [
        "  %so = mul i64 %m, %groups",
        "  %sm = getelementptr float, ptr %sums, i64 %so",
        "  %tm = getelementptr float, ptr %steps, i64 %so",
        "  %qm = getelementptr i16, ptr %q, i64 %xo",
        "  %im = getelementptr i32, ptr %middles, i64 %so",
        "  br label %group",
        "group:",
        "  %g = phi i64 [ 0, %row ], [ %g.next, %group.end ]",
    ]
    lines += [f"  %tot{r} = phi {total} [ zeroinitializer, %row ], [ %tot.next{r}, %group.end ]" for r in range(panel)]
    lines += ["  %k0 = mul i64 %g, %size", "  %k1 = add i64 %k0, %size", "  %ip = getelementptr i32, ptr %im, i64 %g",
              "  %mid = load i32, ptr %ip", f"  %init = insertelement {sums} zeroinitializer, i32 %mid, i32 0",
              "  br label %inner", "inner:", "  %k = phi i64 [ %k0, %group ], [ %k.next, %inner ]"]  # fmt: skip
    lines += [f"  %acc{r} = phi {sums} [ %init, %group ], [ %acc.next{r}, %inner ]" for r in range(panel)]
    lines += [
        "  %xk = getelementptr i16, ptr %qm, i64 %k",
        f"  %xl = load {words}, ptr %xk, align 2",
        f"  %xq = getelementptr i16, ptr %xk, i64 {count}",
        f"  %xh = load {words}, ptr %xq, align 2",
        "  %kb = lshr i64 %k, 1",
    ]
    fifteen, four = (f"<{', '.join([f'i16 {value}'] * count)}>" for value in (15, 4))
    for r in range(panel):
        lines += [
            f"  %wk{r} = getelementptr i8, ptr %w{r}, i64 %kb",
            f"  %wv{r} = load {halves}, ptr %wk{r}, align 1",
            f"  %wi{r} = zext {halves} %wv{r} to {words}",
            f"  %wl{r} = and {words} %wi{r}, {fifteen}",
            f"  %wh{r} = lshr {words} %wi{r}, {four}",
            f"  %fl{r} = call {sums} {multiply}({words} %wl{r}, {words} %xl)",
            f"  %fh{r} = call {sums} {multiply}({words} %wh{r}, {words} %xh)",
            f"  %half{r} = add {sums} %acc{r}, %fl{r}",
            f"  %acc.next{r} = add {sums} %half{r}, %fh{r}",
        ]
    lines += [f"  %k.next = add i64 %k, {2 * count}", "  %k.more = icmp ult i64 %k.next, %k1",
              "  br i1 %k.more, label %inner, label %group.end", "group.end:", "  %tp = getelementptr float, ptr %tm, i64 %g",
              "  %ts = load float, ptr %tp"]  # fmt: skip
    for r in range(panel):
        lines += _bfloat16(f"s{r}", f"%sp{r}")
        lines += [
            f"  %st{r} = fmul float %s{r}, %ts",
            f"  %ins{r} = insertelement {total} poison, float %st{r}, i32 0",
            f"  %spl{r} = shufflevector {total} %ins{r}, {total} poison, <{count // 2} x i32> zeroinitializer",
            f"  %num{r} = sitofp {sums} %acc.next{r} to {total}",
            f"  %tot.next{r} = call {total} {fma}({total} %num{r}, {total} %spl{r}, {total} %tot{r})",
        ]
    lines += [
        "  %g.next = add i64 %g, 1",
        "  %g.more = icmp ult i64 %g.next, %groups",
        "  br i1 %g.more, label %group, label %group.last",
        "group.last:",
    ]
    lines += [f"  %main{r} = call reassoc float {reduce}(float 0.0, {total} %tot.next{r})" for r in range(panel)]
    return lines + _added(panel)


def _added(panel: int) -> list[str]:
    """What is added to all weights of a group, times the sum of its inputs: eight groups at a time."""
    eight, words = "<8 x float>", "<8 x i16>"
    lines = ["  br label %offsets", "offsets:", "  %o = phi i64 [ 0, %group.last ], [ %o.next, %offsets ]"]
    lines += [f"  %off{r} = phi {eight} [ zeroinitializer, %group.last ], [ %off.next{r}, %offsets ]" for r in range(panel)]
    lines += [
        "  %left = sub i64 %groups, %o",
        "  %left.i = insertelement <8 x i64> poison, i64 %left, i32 0",
        "  %left.v = shufflevector <8 x i64> %left.i, <8 x i64> poison, <8 x i32> zeroinitializer",
        f"  %there = icmp ugt <8 x i64> %left.v, <{', '.join(f'i64 {i}' for i in range(8))}>",
        "  %xp = getelementptr float, ptr %sm, i64 %o",
        f"  %xs = call {eight} @llvm.masked.load.v8f32.p0(ptr %xp, i32 4, <8 x i1> %there, {eight} zeroinitializer)",
    ]
    for r in range(panel):
        lines += [
            f"  %ad.p{r} = getelementptr i16, ptr %ap{r}, i64 %o",
            f"  %ad.h{r} = load {words}, ptr %ad.p{r}, align 2",
            f"  %ad.w{r} = zext {words} %ad.h{r} to <8 x i32>",
            f"  %ad.i{r} = shl <8 x i32> %ad.w{r}, <{', '.join(['i32 16'] * 8)}>",
            f"  %ad{r} = bitcast <8 x i32> %ad.i{r} to {eight}",
            f"  %off.next{r} = call {eight} @llvm.fma.v8f32({eight} %ad{r}, {eight} %xs, {eight} %off{r})",
        ]
    lines += [
        "  %o.next = add i64 %o, 8",
        "  %o.more = icmp ult i64 %o.next, %padded",
        "  br i1 %o.more, label %offsets, label %out4",
        "out4:",
    ]
    return lines + [
        f"  %sum{r} = call reassoc float @llvm.vector.reduce.fadd.v8f32(float %main{r}, {eight} %off.next{r})" for r in range(panel)
    ]


def rounding(name: str) -> str:
    """IR of ``void name(ptr)``: float32 ``x`` (rows, inputs) to int16 ``q``, each group of ``size`` by ``steps`` (rows, groups) of its
    own, 1/32767 of its largest magnitude; ``sums`` are those of ``x`` itself, by which what is not a number stays so;
    ``middles`` -8 times those of ``q``."""
    lines = [_HEAD, f"define void @{name}(ptr %a) {{", "entry:", *_fields()]
    top = f"<{', '.join([f'float {TOP}.0'] * LANES)}>"
    lines += [
        "  %count = mul i64 %rows, %groups",
        "  br label %group",
        "group:",
        "  %g = phi i64 [ 0, %entry ], [ %g.next, %group.end ]",
        "  %start = mul i64 %g, %size",
        "  %xg = getelementptr float, ptr %x, i64 %start",
        "  %qg = getelementptr i16, ptr %q, i64 %start",
        "  br label %look",
        "look:",
        "  %k = phi i64 [ 0, %group ], [ %k.next, %look ]",
        f"  %max = phi {_VECTOR} [ zeroinitializer, %group ], [ %max.next, %look ]",
        f"  %sum = phi {_VECTOR} [ zeroinitializer, %group ], [ %sum.next, %look ]",
        "  %xp = getelementptr float, ptr %xg, i64 %k",
        f"  %xv = load {_VECTOR}, ptr %xp, align 4",
        f"  %size.v = call {_VECTOR} @llvm.fabs.v16f32({_VECTOR} %xv)",
        f"  %more = fcmp ogt {_VECTOR} %size.v, %max",
        f"  %max.next = select <{LANES} x i1> %more, {_VECTOR} %size.v, {_VECTOR} %max",
        f"  %sum.next = fadd {_VECTOR} %sum, %xv",
        f"  %k.next = add i64 %k, {LANES}",
        "  %k.more = icmp ult i64 %k.next, %size",
        "  br i1 %k.more, label %look, label %scale.it",
        "scale.it:",
        f"  %all = call reassoc float @llvm.vector.reduce.fadd.v16f32(float 0.0, {_VECTOR} %sum.next)",
        f"  %top = call float @llvm.vector.reduce.fmax.v16f32({_VECTOR} %max.next)",
        "  %none = fcmp olt float %top, 0x3810000000000000",
        "  %safe = select i1 %none, float 0x3810000000000000, float %top",
        f"  %step = fdiv float %safe, {TOP}.0",
        f"  %inverse = fdiv float {TOP}.0, %safe",
        "  %tp = getelementptr float, ptr %steps, i64 %g",
        "  store float %step, ptr %tp",
        "  %sp = getelementptr float, ptr %sums, i64 %g",
        "  store float %all, ptr %sp",
        f"  %in0 = insertelement {_VECTOR} poison, float %inverse, i32 0",
        f"  %inv = shufflevector {_VECTOR} %in0, {_VECTOR} poison, {_FLOATS} zeroinitializer",
        "  br label %round",
        "round:",
        "  %j = phi i64 [ 0, %scale.it ], [ %j.next, %round ]",
        f"  %tally = phi {_FLOATS} [ zeroinitializer, %scale.it ], [ %tally.next, %round ]",
        "  %yp = getelementptr float, ptr %xg, i64 %j",
        f"  %yv = load {_VECTOR}, ptr %yp, align 4",
        f"  %ratio = fmul {_VECTOR} %yv, %inv",
        f"  %near = call {_VECTOR} @llvm.rint.v16f32({_VECTOR} %ratio)",
        f"  %low = call {_VECTOR} @llvm.minnum.v16f32({_VECTOR} %near, {_VECTOR} {top})",
        f"  %int = call {_FLOATS} @llvm.fptosi.sat.v16i32.v16f32({_VECTOR} %low)",
        f"  %tally.next = add {_FLOATS} %tally, %int",
        f"  %short = trunc {_FLOATS} %int to <{LANES} x i16>",
        "  %qp = getelementptr i16, ptr %qg, i64 %j",
        f"  store <{LANES} x i16> %short, ptr %qp, align 2",
        f"  %j.next = add i64 %j, {LANES}",
        "  %j.more = icmp ult i64 %j.next, %size",
        "  br i1 %j.more, label %round, label %group.end",
        "group.end:",
        f"  %count.all = call i32 @llvm.vector.reduce.add.v16i32({_FLOATS} %tally.next)",
        f"  %middle = mul i32 %count.all, {-MIDDLE}",
        "  %mp = getelementptr i32, ptr %middles, i64 %g",
        "  store i32 %middle, ptr %mp",
        "  %g.next = add i64 %g, 1",
        "  %g.more = icmp ult i64 %g.next, %count",
        "  br i1 %g.more, label %group, label %done",
        "done:",
        "  ret void",
        "}",
    ]
    return "\n".join(lines)


def _bfloat16(name: str, row: str) -> list[str]:
    """The float32 ``name`` of the group in hand, read from a row of bfloat16."""
    return [
        f"  %{name}.p = getelementptr i16, ptr {row}, i64 %g",
        f"  %{name}.h = load i16, ptr %{name}.p, align 2",
        f"  %{name}.w = zext i16 %{name}.h to i32",
        f"  %{name}.i = shl i32 %{name}.w, 16",
        f"  %{name} = bitcast i32 %{name}.i to float",
    ]
