"""Questions, lines and tables."""

from __future__ import annotations

import io

import pytest
from scripted import QUESTIONS, script

from engine.events import event as ev
from qtui import text
from qtui.bars import Bars
from qtui.console import Console, drive
from qtui.layout import arrange
from qtui.prompts import Prompts
from qtui.screen import Screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def answers(stdin: str, yes: bool = False) -> tuple[list[bool | None], str]:
    out = io.StringIO()
    screen = Screen(out)
    got: list[bool | None] = []
    drive(script(got), Console(screen, Bars(None), Prompts(screen, io.StringIO(stdin), yes)))
    return got, out.getvalue()


def test_questions_come_in_order_and_enter_takes_the_default() -> None:
    got, out = answers("\nno\nY\nn\n")
    assert got == [True, False, True, False]
    places = [out.index(f"{question} [Y/n] ") for _, question in QUESTIONS]
    assert places == sorted(places)


def test_a_word_that_is_no_answer_asks_again() -> None:
    got, out = answers("perhaps\nn\n\n\n\n")
    assert got == [False, True, True, True]
    assert out.count("trace? [Y/n] ") == 2 and "please answer y or n" in out


def test_no_input_takes_the_defaults_and_says_so_once() -> None:
    got, out = answers("n\n")
    assert got == [False, True, True, True]
    assert out.count("no input") == 1


def test_a_default_of_no_is_shown_and_taken() -> None:
    out = io.StringIO()
    assert Prompts(Screen(out), io.StringIO("\n")).ask(ev.Ask("qat", "QAT?", default=False)) is False
    assert out.getvalue().startswith("QAT? [y/N] ")


def test_yes_reads_nothing() -> None:
    stdin = io.StringIO("n\nn\n")
    out = io.StringIO()
    assert Prompts(Screen(out), stdin, yes=True).ask(ev.Ask("trace", "trace?")) is True
    assert (out.getvalue(), stdin.tell()) == ("trace? [Y/n] yes\n", 0)


def test_measured_and_epoch_lines() -> None:
    found = {"value": 0.9722, "error": {"mse": 1.9e-5, "sqnr_db": 33.2, "agreement": 0.9972}, "size_bytes": 380_000}
    found |= {"latency_ms": {"p50": 0.37}, "kernel": "onednn.qconv_pointwise", "simulated": True}
    assert "  ".join(text.figures(found, "accuracy")) == (
        "accuracy 97.22 %  error 1.9e-5  SQNR 33.2 dB  agreement 99.72 %  0.38 MB  p50 0.37 ms  onednn.qconv_pointwise  simulated"
    )
    words = {"value": 23.41, "size_bytes": 85_800_000, "to_fp16": 0.34496, "tokens_per_second": {"decode": 102.1, "prefill": 797.4}}
    assert "  ".join(text.figures(words, "perplexity")) == "perplexity 23.41  85.80 MB  0.345 of fp16  writes 102 tok/s  reads 797 tok/s"
    assert text.figures({"value": None, "error": None, "latency_ms": {}}, "accuracy") == []
    line = "  ".join(text.epoch(ev.EpochFinished(2, 5, 0.12341, 0.9833, 0.0071, True), "accuracy"))
    assert " ".join(line.split()) == "epoch 2/5 loss 0.1234 validation 98.33 % lr 0.0071 best"
    assert "best" not in text.epoch(ev.EpochFinished(2, 5, 0.1, 0.9, 0.1, False), "accuracy")


def test_the_baseline_names_the_metric_of_what_follows() -> None:
    out = io.StringIO()
    screen = Screen(out)
    console = Console(screen, Bars(None), Prompts(screen, None))
    console(ev.Measured("baseline", {"metric": "perplexity", "value": 23.412}))
    console(ev.Measured("ptq", {"value": 24.001}))
    assert out.getvalue() == "  baseline  perplexity 23.41\n  ptq       perplexity 24.00\n"


def test_a_perplexity_comes_with_its_protocol_and_a_divergence_in_place_of_an_error() -> None:
    out = io.StringIO()
    screen = Screen(out)
    console = Console(screen, Bars(None), Prompts(screen, None))
    how = {"protocol": "sliding window", "context": 1024, "stride": 512, "tokens": 9999}
    console(ev.Measured("baseline", {"metric": "perplexity", "value": 23.412, "perplexity": how}))
    console(ev.Measured("ptq", {"value": 24.001, "error": {"mse": 0.5, "divergence": 0.01234}, "perplexity": how}))
    first, *rest = out.getvalue().splitlines()
    assert first == "  perplexity: sliding window, context 1,024, stride 512, 9,999 tokens of the test split"
    assert [line.split()[-2:] for line in rest] == [["perplexity", "23.41"], ["KL", "0.0123"]]


@pytest.mark.parametrize(("value", "said"), [(0.312, "0.31 s"), (1.19, "1.2 s"), (59.9, "59.9 s"), (125, "2 min 05 s")])
def test_seconds(value: float, said: str) -> None:
    assert text.seconds(value) == said


def table(columns: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> str:
    out = io.StringIO()
    Screen(out).table(columns, rows)
    return out.getvalue()


def test_a_table_that_fits_is_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert (
        table(("name", "SQNR"), (("conv1", "9.5 dB"), ("fc[red]", "41.2 dB")))
        == "  name        SQNR\n  conv1     9.5 dB\n  fc[red]  41.2 dB\n"
    )


def test_prose_that_does_not_fit_goes_below_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "features.denseblock4.denselayer16.conv2"
    out = table(("name", "kernel", "reason", "n"), ((name, "onednn.qconv_pointwise", "word " * 30, "1"), ("b", "k", "short one", "2")))
    assert out.splitlines()[1].startswith(f"  {name}  onednn.qconv_pointwise") and out.count("word") == 30
    assert "    reason  short one\n" in out
    assert max(map(len, out.splitlines())) <= 80


def test_columns_that_cannot_fit_leave_the_table_widest_first() -> None:
    layout = arrange(("name", "a", "b"), (("x" * 20, "y" * 40, "z" * 30),), 80)
    assert (list(layout.beside), layout.below, layout.fits) == ([0, 2], (1,), True)
    assert arrange(("name", "a", "b"), (("x" * 20, "y" * 40, "z" * 30),), 100).below == ()


def test_text_from_files_cannot_steer_the_terminal() -> None:
    out = Terminal()
    screen = Screen(out)
    screen.line("a\x1b[2Jb\x9b")
    screen.table(("name",), (("\x1b]0;x\x07",),))
    assert "\x1b[2J" not in out.getvalue() and "\x1b]0" not in out.getvalue() and "\x9b" not in out.getvalue()


def test_a_bar_is_drawn_on_a_terminal_and_gone_before_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = Terminal()
    bars = Bars(out)
    bars.update(ev.Progress("c", 64, 128, "img", 100.0, 0.6))
    assert "64/128 img, 100 img/s, 1 s left" in out.getvalue()
    bars.clear()
    assert out.getvalue().endswith("\r") and not out.getvalue().rsplit("\r", 2)[1].strip()
    bars.update(ev.Progress("c", 128, 128, "img", 110.0, 0.0))
    assert bars.finish(1.2) == "128 img, 110 img/s, 1.2 s"


def test_a_stage_that_counts_anew_is_summed_up_by_its_seconds() -> None:
    bars = Bars(None)
    for done in (64, 128, 64, 128):
        bars.update(ev.Progress("t", done, 128, "img", 100.0, 0.0))
    assert bars.finish(3.0) == "3.0 s"
    assert bars.finish(1.0) == "1.0 s"
