"""The LLVM IR of a few rows of inputs times int8 or int4 weights: each weight is read once from memory, which is what such a product of
one row waits for.

Weights lie in panels of so many outputs as a vector has lanes, and within one in the order in which they are read: a vector holds some
inputs of each output, so that sums of a lane are those of its output and no lanes are added up (as the repacked ``Q4_0_8x8`` of
llama.cpp). Inputs are rounded first, each group by its largest magnitude: to 8 bits or fewer where a recipe asks for integer
activations, else to 16. Bytes are multiplied by PMADDUBSW, whose sums of 16 bits hold eight products with codes of 4 bits, or
VPDPBUSD; int8 by int8 as magnitudes times signed inputs, two of which 16 bits hold; int8 by int16 with PMADDWD.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.kernels.jit.ir import HEAD, broadcast, constant, fields, share, vectors
from engine.kernels.jit.rounding_ir import Rounded

# Bytes ahead of the weights in hand that are asked from memory.
_AHEAD = 1024
_CODES = {4: 32, 8: 16}


@dataclass(frozen=True)
class Instructions:
    """What a processor has: ``lanes`` of 32 bits in a vector, and whether VPDPBUSD adds products of bytes in 32 bits."""

    lanes: int
    dots: bool

    @property
    def name(self) -> str:
        return f"x{self.lanes}{'_dots' if self.dots else ''}"


@dataclass(frozen=True)
class Form:
    """A product: ``bits`` of the weights, 4 or 8; what inputs are rounded to; whether something is ``added`` to the weights of a group;
    and how many rows of inputs share what is read of the weights."""

    bits: int
    rounded: Rounded
    added: bool
    tile: int

    def name(self, instructions: Instructions) -> str:
        return f"int{self.bits}_{self.rounded}{'_added' if self.added else ''}_{self.tile}_{instructions.name}"


def inputs_together(bits: int, rounded: Rounded) -> int:
    """How many inputs of one output lie together: 32 bits of them, of int8 with 16-bit inputs half of that."""
    return 8 if bits == 4 else 2 if rounded == "words" else 4


def multiple(bits: int) -> int:
    """What the inputs of a group are a multiple of."""
    return _CODES[bits]


def function(name: str, form: Form, instructions: Instructions, spelled: bool = False) -> str:
    """IR of ``void name(ptr)``, one thread's part of ``y = x @ weight.T + bias`` within a parallel region.

    ``weight`` is as ``products.panels`` lays it. With 8 bits ``scale`` is float32 (out,), with 4 bits it and ``added`` are bfloat16
    (panels, groups, lanes), and a weight is ``(q - 8) * scale + added``. ``bias`` and 8 bits' ``scale`` are filled to whole panels.
    ``q``, ``low``, ``steps``, ``middles`` and ``sums`` are what ``rounding`` makes of ``x``. ``y`` is float32 (rows, out). ``spelled``
    writes VPDPBUSD and PMADDWD as plain arithmetic, for a processor without those of that width.
    """
    products = _spelled(instructions.lanes) if spelled else _declared(instructions)
    return "\n".join(_Function(name, form, instructions).lines() + products)


class _Function:
    def __init__(self, name: str, form: Form, instructions: Instructions) -> None:
        self._name, self._form, self._tile, self._dots = name, form, form.tile, instructions.dots
        self._lanes = instructions.lanes
        self._ints, self._floats = f"<{self._lanes} x i32>", f"<{self._lanes} x float>"
        self._words, self._bytes = f"<{2 * self._lanes} x i16>", f"<{4 * self._lanes} x i8>"
        self._fma = f"@llvm.fma.v{self._lanes}f32"

    def lines(self) -> list[str]:
        lanes, form = self._lanes, self._form
        lines = [HEAD, vectors(lanes), f"define void @{self._name}(ptr %a) {{", "entry:", *fields(), *share("panels", lanes)]
        lines += [
            "  %some = icmp ult i64 %begin, %end",
            "  %last = sub i64 %rows, 1",
            f"  %bytes = mul i64 %size, {lanes * form.bits // 8}",
            "  %panel.bytes = mul i64 %bytes, %groups",
            "  br i1 %some, label %panel, label %done",
            "panel:",
            "  %p = phi i64 [ %begin, %entry ], [ %p.next, %panel.end ]",
            f"  %first = mul i64 %p, {lanes}",
            "  %wo = mul i64 %p, %panel.bytes",
            "  %wp = getelementptr i8, ptr %weight, i64 %wo",
            "  %bp = getelementptr float, ptr %bias, i64 %first",
            f"  %bv = load {self._floats}, ptr %bp, align 4",
            "  %left = sub i64 %out, %first",
            f"  %left.i = insertelement <{lanes} x i64> poison, i64 %left, i32 0",
            f"  %left.v = shufflevector <{lanes} x i64> %left.i, <{lanes} x i64> poison, <{lanes} x i32> zeroinitializer",
            f"  %there = icmp ugt <{lanes} x i64> %left.v, <{', '.join(f'i64 {i}' for i in range(lanes))}>",
        ]
        if form.bits == 4:
            lines += ["  %go = mul i64 %first, %groups", "  %sp = getelementptr i16, ptr %scale, i64 %go"]
            lines += ["  %ap = getelementptr i16, ptr %added, i64 %go"]
        else:
            lines += ["  %sp = getelementptr float, ptr %scale, i64 %first", f"  %sv = load {self._floats}, ptr %sp, align 4"]
        lines += ["  br label %tile", "tile:", "  %t = phi i64 [ 0, %panel ], [ %t.next, %tile.end ]"]
        for i in range(self._tile):
            # Rows past the end are the last one again, which is written again.
            lines += [f"  %u{i} = add i64 %t, {i}", f"  %m{i} = call i64 @llvm.umin.i64(i64 %u{i}, i64 %last)"]
            lines += [f"  %xo{i} = mul i64 %m{i}, %inputs", f"  %so{i} = mul i64 %m{i}, %groups"]
            lines += [f"  %q{i} = getelementptr {'i16' if form.rounded == 'words' else 'i8'}, ptr %q, i64 %xo{i}"]
            lines += [f"  %l{i} = getelementptr i8, ptr %low, i64 %xo{i}"]
            lines += [f"  %{short}p{i} = getelementptr i32, ptr %{long}, i64 %so{i}"
                      for short, long in (("step", "steps"), ("mid", "middles"), ("sum", "sums"))]  # fmt: skip
        lines += [*self._group(), *self._written()]
        lines += [
            "  br label %tile.end",
            "tile.end:",
            f"  %t.next = add i64 %t, {self._tile}",
            "  %t.more = icmp ult i64 %t.next, %rows",
            "  br i1 %t.more, label %tile, label %panel.end",
            "panel.end:",
            "  %p.next = add i64 %p, 1",
            "  %p.more = icmp ult i64 %p.next, %end",
            "  br i1 %p.more, label %panel, label %done",
            "done:",
            "  ret void",
            "}",
        ]
        return lines

    def _group(self) -> list[str]:
        """All groups of a tile: ``%tot{i}.next``."""
        form, ints, floats = self._form, self._ints, self._floats
        lines = ["  br label %group", "group:", "  %g = phi i64 [ 0, %tile ], [ %g.next, %group.end ]"]
        for i in range(self._tile):
            lines.append(f"  %tot{i} = phi {floats} [ zeroinitializer, %tile ], [ %tot{i}.next, %group.end ]")
        lines += ["  %k0 = mul i64 %g, %size", "  %k1 = add i64 %k0, %size", "  %gb = mul i64 %g, %bytes",
                  "  %wg = getelementptr i8, ptr %wp, i64 %gb"]  # fmt: skip
        for i in range(self._tile):
            lines += [f"  %midp{i}.g = getelementptr i32, ptr %midp{i}, i64 %g", f"  %mid{i} = load i32, ptr %midp{i}.g, align 4"]
            lines += broadcast(f"init{i}", f"%mid{i}", "i32", self._lanes)
        lines += ["  br label %codes", "codes:", "  %k = phi i64 [ %k0, %group ], [ %k.next, %codes ]",
                  "  %w = phi ptr [ %wg, %group ], [ %w.next, %codes ]"]  # fmt: skip
        for i in range(self._tile):
            lines.append(f"  %acc{i} = phi {ints} [ %init{i}, %group ], [ %acc{i}.next, %codes ]")
            if self._apart:
                lines.append(f"  %top{i} = phi {ints} [ zeroinitializer, %group ], [ %top{i}.next, %codes ]")
        count = _CODES[form.bits]
        lines += [
            f"  %ahead = getelementptr i8, ptr %w, i64 {_AHEAD}",
            *(
                line
                for at in range(0, self._lanes * count * form.bits // 8, 64)
                for line in (
                    f"  %ahead{at} = getelementptr i8, ptr %ahead, i64 {at}",
                    f"  call void @llvm.prefetch.p0(ptr %ahead{at}, i32 0, i32 3, i32 1)",
                )
            ),
            *(self._nibbles() if form.bits == 4 else self._whole_words() if form.rounded == "words" else self._whole_bytes()),
            f"  %k.next = add i64 %k, {count}",
            f"  %w.next = getelementptr i8, ptr %w, i64 {self._lanes * count * form.bits // 8}",
            "  %k.more = icmp ult i64 %k.next, %k1",
            "  br i1 %k.more, label %codes, label %group.last",
            "group.last:",
        ]
        if form.bits == 4:
            lines += ["  %gl = mul i64 %g, " + str(self._lanes), *self._bfloat16("scales", "%sp")]
            lines += self._bfloat16("adds", "%ap") if form.added else []
        for i in range(self._tile):
            if self._apart:
                lines += [f"  %up{i} = shl {ints} %top{i}.next, {constant(8, 'i32', self._lanes)}",
                          f"  %all{i} = add {ints} %acc{i}.next, %up{i}"]  # fmt: skip
            total = f"%all{i}" if self._apart else f"%acc{i}.next"
            lines += [
                f"  %num{i} = sitofp {ints} {total} to {floats}",
                f"  %stepp{i}.g = getelementptr float, ptr %stepp{i}, i64 %g",
                f"  %step{i} = load float, ptr %stepp{i}.g, align 4",
                *broadcast(f"steps{i}", f"%step{i}", "float", self._lanes),
            ]
            if form.bits == 4:
                lines.append(f"  %by{i} = fmul {floats} %scales, %steps{i}")
            by = f"%by{i}" if form.bits == 4 else f"%steps{i}"
            end = f"%tot{i}.main" if form.added else f"%tot{i}.next"
            lines.append(f"  {end} = call {floats} {self._fma}({floats} %num{i}, {floats} {by}, {floats} %tot{i})")
            if form.added:
                lines += [f"  %sump{i}.g = getelementptr float, ptr %sump{i}, i64 %g", f"  %sum{i} = load float, ptr %sump{i}.g, align 4"]
                lines += broadcast(f"sums{i}", f"%sum{i}", "float", self._lanes)
                lines.append(f"  %tot{i}.next = call {floats} {self._fma}({floats} %adds, {floats} %sums{i}, {floats} {end})")
        return [*lines, "  br label %group.end", "group.end:", "  %g.next = add i64 %g, 1", "  %g.more = icmp ult i64 %g.next, %groups",
                "  br i1 %g.more, label %group, label %write", "write:"]  # fmt: skip

    @property
    def _apart(self) -> bool:
        """Whether the upper halves of inputs are summed apart in 32 bits."""
        return self._dots and self._form.rounded == "halves"

    def _written(self) -> list[str]:
        floats, lines = self._floats, []
        for i in range(self._tile):
            if self._form.bits == 4:
                lines.append(f"  %full{i} = fadd {floats} %tot{i}.next, %bv")
            else:
                lines.append(f"  %full{i} = call {floats} {self._fma}({floats} %tot{i}.next, {floats} %sv, {floats} %bv)")
            lines += [
                f"  %yo{i} = mul i64 %m{i}, %out",
                f"  %yf{i} = add i64 %yo{i}, %first",
                f"  %yp{i} = getelementptr float, ptr %y, i64 %yf{i}",
                f"  call void @llvm.masked.store.v{self._lanes}f32.p0({floats} %full{i}, ptr %yp{i}, i32 4, <{self._lanes} x i1> %there)",
            ]
        return lines

    def _nibbles(self) -> list[str]:
        """32 inputs: four vectors, each with four inputs in the low nibbles of an output's bytes and the next four in the high ones."""
        lanes, lines = self._lanes, []
        fifteen, four = constant(15, "i8", 4 * lanes), constant(4, "i16", 2 * lanes)
        for v in range(4):
            lines += [
                f"  %wp{v} = getelementptr i8, ptr %w, i64 {4 * lanes * v}",
                f"  %wv{v} = load {self._bytes}, ptr %wp{v}, align 1",
                f"  %wn{2 * v} = and {self._bytes} %wv{v}, {fifteen}",
                f"  %ww{v} = bitcast {self._bytes} %wv{v} to {self._words}",
                f"  %wr{v} = lshr {self._words} %ww{v}, {four}",
                f"  %wb{v} = bitcast {self._words} %wr{v} to {self._bytes}",
                f"  %wn{2 * v + 1} = and {self._bytes} %wb{v}, {fifteen}",
            ]
        halves = self._form.rounded == "halves"
        for i in range(self._tile):
            top = f"%top{i}" if self._apart else f"%acc{i}"
            lines += self._eight(f"h{i}" if halves else f"o{i}", f"%q{i}", top if halves else f"%acc{i}", 256 if halves else 1,
                                 f"%top{i}.next" if self._apart else f"%up{i}.acc" if halves else f"%acc{i}.next")  # fmt: skip
            if halves:
                lines += self._eight(f"o{i}", f"%l{i}", f"%acc{i}" if self._apart else f"%up{i}.acc", 1, f"%acc{i}.next")
        return lines

    def _eight(self, name: str, inputs: str, acc: str, factor: int, end: str) -> list[str]:
        """The products of ``%wn0`` to ``%wn7`` with four bytes of ``inputs`` each, added to ``acc``: ``end``. Where 16 bits hold the
        sums, they are multiplied by ``factor``."""
        lines: list[str] = []
        for v in range(8):
            lines += self._four(f"{name}.{v}", inputs, 4 * v)
            if self._dots:
                after = end if v == 7 else f"%{name}.s{v}"
                lines.append(f"  {after} = {self._dot(acc, f'%wn{v}', f'%{name}.{v}')}")
                acc = after
                continue
            product = f"%{name}.p{v}"
            lines.append(f"  {product} = {_multiplied(self._bytes, f'%wn{v}', f'%{name}.{v}', self._words)}")
            if v:
                lines.append(f"  %{name}.s{v} = add {self._words} {f'%{name}.s{v - 1}' if v > 1 else f'%{name}.p0'}, {product}")
        if not self._dots:
            by = constant(factor, "i16", 2 * self._lanes)
            lines.append(f"  %{name}.d = {_added(self._words, f'%{name}.s7', by, self._ints)}")
            lines.append(f"  {end} = add {self._ints} {acc}, %{name}.d")
        return lines

    def _whole_bytes(self) -> list[str]:
        """16 inputs: four vectors with four inputs of each output."""
        lanes, lines = self._lanes, []
        ones = constant(1, "i16", 2 * lanes)
        for v in range(4):
            lines += [f"  %wp{v} = getelementptr i8, ptr %w, i64 {4 * lanes * v}", f"  %wv{v} = load {self._bytes}, ptr %wp{v}, align 1"]
            if not self._dots:
                lines.append(f"  %wa{v} = call {self._bytes} @llvm.abs.v{4 * lanes}i8({self._bytes} %wv{v}, i1 false)")
        for i in range(self._tile):
            acc = f"%acc{i}"
            for v in range(4):
                after = f"%acc{i}.next" if v == 3 else f"%acc{i}.{v}"
                lines += self._four(f"x{i}.{v}", f"%q{i}", 4 * v)
                if self._dots:
                    lines.append(f"  {after} = {self._dot(acc, f'%wv{v}', f'%x{i}.{v}')}")
                else:
                    lines += [
                        f"  %s{i}.{v} = call {self._bytes} @llvm.x86.avx2.psign.b({self._bytes} %x{i}.{v}, {self._bytes} %wv{v})",
                        f"  %p{i}.{v} = {_multiplied(self._bytes, f'%wa{v}', f'%s{i}.{v}', self._words)}",
                        f"  %d{i}.{v} = {_added(self._words, f'%p{i}.{v}', ones, self._ints)}",
                        f"  {after} = add {self._ints} {acc}, %d{i}.{v}",
                    ]
                acc = after
        return lines

    def _whole_words(self) -> list[str]:
        """16 inputs: eight vectors with two inputs of each output."""
        lanes, lines = self._lanes, []
        half = f"<{2 * lanes} x i8>"
        for v in range(8):
            lines += [
                f"  %wp{v} = getelementptr i8, ptr %w, i64 {2 * lanes * v}",
                f"  %wh{v} = load {half}, ptr %wp{v}, align 1",
                f"  %wv{v} = sext {half} %wh{v} to {self._words}",
            ]
        for i in range(self._tile):
            acc = f"%acc{i}"
            for v in range(8):
                after = f"%acc{i}.next" if v == 7 else f"%acc{i}.{v}"
                name = f"x{i}.{v}"
                lines += [f"  %{name}.k = add i64 %k, {2 * v}", f"  %{name}.p = getelementptr i16, ptr %q{i}, i64 %{name}.k",
                          f"  %{name}.s = load i32, ptr %{name}.p, align 2", *broadcast(f"{name}.v", f"%{name}.s", "i32", lanes),
                          f"  %{name} = bitcast {self._ints} %{name}.v to {self._words}",
                          f"  %d{i}.{v} = {_added(self._words, f'%wv{v}', f'%{name}', self._ints)}",
                          f"  {after} = add {self._ints} {acc}, %d{i}.{v}"]  # fmt: skip
                acc = after
        return lines

    def _four(self, name: str, inputs: str, at: int) -> list[str]:
        """Four bytes of ``inputs`` from ``%k + at``, in each lane: ``%name``."""
        return [
            f"  %{name}.k = add i64 %k, {at}",
            f"  %{name}.a = getelementptr i8, ptr {inputs}, i64 %{name}.k",
            f"  %{name}.l = load i32, ptr %{name}.a, align 1",
            *broadcast(f"{name}.v", f"%{name}.l", "i32", self._lanes),
            f"  %{name} = bitcast {self._ints} %{name}.v to {self._bytes}",
        ]

    def _dot(self, acc: str, weights: str, inputs: str) -> str:
        return f"call {self._ints} @dot({self._ints} {acc}, {self._bytes} {weights}, {self._bytes} {inputs})"

    def _bfloat16(self, name: str, row: str) -> list[str]:
        """Those of the group in hand, as float32: ``%name``."""
        shorts = f"<{self._lanes} x i16>"
        return [
            f"  %{name}.p = getelementptr i16, ptr {row}, i64 %gl",
            f"  %{name}.h = load {shorts}, ptr %{name}.p, align 2",
            f"  %{name}.w = zext {shorts} %{name}.h to {self._ints}",
            f"  %{name}.i = shl {self._ints} %{name}.w, {constant(16, 'i32', self._lanes)}",
            f"  %{name} = bitcast {self._ints} %{name}.i to {self._floats}",
        ]


def _kinds(lanes: int) -> tuple[str, str, str]:
    return f"<{lanes} x i32>", f"<{2 * lanes} x i16>", f"<{4 * lanes} x i8>"


def _declared(instructions: Instructions) -> list[str]:
    """``@pairs`` as PMADDWD, and ``@dot`` as VPDPBUSD where it is there."""
    lanes = instructions.lanes
    ints, words, bytes_ = _kinds(lanes)
    pairs = "@llvm.x86.avx512.pmaddw.d.512" if lanes > 8 else "@llvm.x86.avx2.pmadd.wd"
    lines = [
        f"declare {ints} {pairs}({words}, {words})",
        f"define internal {ints} @pairs({words} %a, {words} %b) alwaysinline {{",
        f"  %y = call {ints} {pairs}({words} %a, {words} %b)",
        f"  ret {ints} %y",
        "}",
    ]
    if not instructions.dots:
        return lines
    dot = f"@llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    return [
        *lines,
        f"declare {ints} {dot}({ints}, {ints}, {ints})",
        f"define internal {ints} @dot({ints} %s, {bytes_} %w, {bytes_} %x) alwaysinline {{",
        f"  %wi = bitcast {bytes_} %w to {ints}",
        f"  %xi = bitcast {bytes_} %x to {ints}",
        f"  %y = call {ints} {dot}({ints} %s, {ints} %wi, {ints} %xi)",
        f"  ret {ints} %y",
        "}",
    ]


def _spelled(lanes: int) -> list[str]:
    """Both as plain arithmetic."""
    ints, words, bytes_ = _kinds(lanes)
    lines: list[str] = []
    for head, narrow, widen, parts in (
        (f"@pairs({words} %a, {words} %b)", words, "sext", 2),
        (f"@dot({ints} %s, {bytes_} %a, {bytes_} %b)", bytes_, "zext", 4),
    ):
        wide = f"<{parts * lanes} x i32>"
        lines += [
            f"define internal {ints} {head} alwaysinline {{",
            f"  %aw = {widen} {narrow} %a to {wide}",
            f"  %bw = sext {narrow} %b to {wide}",
            f"  %p = mul {wide} %aw, %bw",
        ]
        before = "%s" if parts == 4 else "zeroinitializer"
        for part in range(parts):
            at = ", ".join(f"i32 {parts * lane + part}" for lane in range(lanes))
            lines += [f"  %c{part} = shufflevector {wide} %p, {wide} poison, <{lanes} x i32> <{at}>",
                      f"  %s{part} = add {ints} {before}, %c{part}"]  # fmt: skip
            before = f"%s{part}"
        lines += [f"  ret {ints} {before}", "}"]
    return lines


def _multiplied(bytes_: str, weights: str, inputs: str, words: str) -> str:
    return f"call {words} @llvm.x86.avx2.pmadd.ub.sw({bytes_} {weights}, {bytes_} {inputs})"


def _added(words: str, first: str, second: str, ints: str) -> str:
    return f"call {ints} @pairs({words} {first}, {words} {second})"
