"""Every number format on a language model: rounding to nearest beside the method of least divergence, with the bits that are stored.

usage: uv run python tests/bench/formats.py [MODEL] [--data NAME] [--formats LIST] [--methods LIST] [--tokens N] [--write FILE]

All linear layers of the blocks are in the format, everything else is float32, as in ``language.py``, whose data, calibration and figures
these are. Bits per weight count all that a file stores of those layers, scales and offsets too. The heading says of how many methods the
best is shown; seconds are those of quantizing with that method alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from language import width
from language_parts import Bench, Row, finished, quantized
from tables import check_place, printed
from torch import Tensor

from engine.data.text.encoded import TextData, load_text
from engine.errors import EngineError
from engine.events.cancellation import StopToken
from engine.models.transformers_load import load_language
from engine.recipe.number_formats import NUMBER_FORMATS
from engine.tasks.perplexity import Perplexity, stream_perplexity

MARKS = ("<!-- bench:formats -->", "<!-- /bench:formats -->")
METHODS = ("mse", "imatrix", "gptq", "imatrix+gptq", "gptq+")
FORMATS = (
    "w8", "w4g64", "w3g64", "w2g32",
    *(f"{name}g64" if name == "nf4" else name for name in NUMBER_FORMATS),
)  # fmt: skip


def table(bench: Bench, formats: list[str], methods: list[str], windows: int) -> Iterator[str]:
    yield from bench.about()
    calibration = bench.calibration(windows, 0, 0)
    yield calibration.about
    yield ""
    which = methods[0] if len(methods) == 1 else f"best of {len(methods)}"
    yield f"| format | bits per weight | nearest | × fp32 | {which} | perplexity | × fp32 | KL nearest | KL best | blocks | s |"
    yield "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|"
    weights = sum(matrix.shape[0] * matrix.shape[1] for matrix in bench.blocks)
    for text in formats:
        plain = _row(bench, calibration, text, "nearest")
        rows = [_row(bench, calibration, text, name) for name in methods]
        # Divergence varies less with the text than perplexity does.
        best = min(rows, key=lambda row: row.divergence)
        base = bench.base.value
        least, value = plain.perplexity.value, best.perplexity.value
        yield (
            f"| {text} | {plain.blocks * 8 / weights:.3f} | {least:.3f} | {least / base:.4f} | {best.method} | {value:.3f} "
            f"| {value / base:.4f} | {plain.divergence:.4f} | {best.divergence:.4f} | {plain.blocks / 1e6:.2f} MB | {best.seconds:.1f} |"
        )


class _Quick(Bench):
    """On the first ``tokens`` of the test; tokens a second are no part of this table."""

    tokens: int | None = None

    def perplexity(self, model: Any) -> Perplexity:
        if self.tokens is None or not isinstance(self.data, TextData):
            return super().perplexity(model)

        def logits(ids: Tensor) -> Tensor:
            found: Tensor = model(input_ids=ids, use_cache=False).logits
            return found

        stream = self.data.streams["test"][: self.tokens]
        return finished(stream_perplexity(logits, stream, self.language.window, stop=StopToken()))

    def speed(self, model: object) -> float:
        return 0.0


def _row(bench: Bench, calibration: object, text: str, name: str) -> Row:
    since = time.perf_counter()
    decoder = quantized(bench, calibration, width(text).spec, name, False)  # type: ignore[arg-type]
    row = bench.judged(text, name, decoder, time.perf_counter() - since)
    print(f"  {text} {name} {row.perplexity.value:.3f} KL {row.divergence:.4f} {row.seconds:.1f} s", file=sys.stderr, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="gpt2-mini")
    parser.add_argument("--data", default="python-docs")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--tokens", type=int, help="of the test split that are scored (default: all)")
    parser.add_argument("--write", type=Path, help="put the table between the markers of this file")
    asked = parser.parse_args()
    check_place(asked.write, MARKS)
    try:
        language = load_language(asked.model, text=not asked.data.lower().endswith(".json"))
        _Quick.tokens = asked.tokens
        bench = _Quick(language, load_text(asked.data, language, StopToken()), False)
        printed(table(bench, asked.formats.split(","), asked.methods.split(","), asked.windows), asked.write, MARKS)
    except EngineError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
