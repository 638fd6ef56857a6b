"""Text in a width, numbers on an axis, bars."""

from __future__ import annotations

import random
import unicodedata

import pytest
from rich.cells import cell_len

from qtui.drawing.bars import bar, progress
from qtui.drawing.numbers import compact, telling
from qtui.drawing.progress_line import progress_line
from qtui.drawing.spans import difference, merged, plain
from qtui.drawing.text import cells, end, fit, middle, safe

TEXTS = (
    "",
    "a",
    "conv2",
    "layer1.0.block.conv2",
    "画像分類モデル",
    "a画b像c",
    "e\u0301tude-naïve",
    "torch.nn.functional.scaled_dot_product_attention",
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_cut_is_never_wider(text: str) -> None:
    for width in range(-1, 60):
        assert cell_len(middle(text, width)) <= max(width, 0)
        assert cell_len(end(text, width)) <= max(width, 0)
        for cut in ("middle", "end"):
            for align in ("left", "right"):
                assert cell_len(fit(text, width, align, cut)) == max(width, 0)
    assert middle(text, cells(text)) == text == end(text, cells(text))


def test_a_name_keeps_both_ends() -> None:
    assert middle("layer1.0.block.conv2", 15) == "layer1.0…conv2"
    assert middle("features.denseblock3.denselayer5.conv2", 22) == "…3.denselayer5.conv2"
    assert middle("features.denseblock3.denselayer5.conv2", 12) == "…5.conv2"
    assert middle("  transformer.h.11.attn.c_proj", 17) == "  …11.attn.c_proj"
    assert middle("layer1.0.block.conv2", 13) == "layer1…conv2"
    assert middle("layer1.0.block.conv2", 1) == "…"


def test_nothing_steers_the_terminal() -> None:
    assert safe("a\x1b[31mb\tc\nd\u202e") == "a[31mb c d"
    assert safe("画像 é") == "画像 é"
    rng = random.Random(0)
    for _ in range(200):
        text = safe("".join(chr(rng.randrange(0x3000)) for _ in range(20)))
        assert not any(unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co"} for char in text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.2e-5, "1.2e-5"),
        (545_000, "545 k"),
        (11_689_512, "11.7 M"),
        (1250, "1,250"),
        (0.38, "0.38"),
        (0, "0"),
        (-3.14159, "-3.14"),
        (1e20, "1e20"),
        (float("nan"), "–"),
        (float("-inf"), "-∞"),
        (9999.7, "10 k"),
        (999_999, "1 M"),
    ],
)
def test_compact_numbers(value: float, text: str) -> None:
    assert compact(value) == text


def test_labels_of_one_axis_can_be_told_apart() -> None:
    assert telling(91.73, 90.2) == ("91.7", "90.2")
    assert telling(98.61, 98.58) == ("98.61", "98.58")
    assert telling(1_000_000, 1_000_100) == ("1 M", "1.0001 M")
    assert telling(0, 1250) == ("0", "1,250")
    assert telling(5e-9, 4e-9) == ("5e-9", "4e-9")
    assert telling(98.61) == ("98.61",)
    assert telling() == ()


def test_bars_fill_their_width() -> None:
    for width in range(0, 12):
        for share in (-1, 0, 1e-9, 0.2, 0.5, 0.999, 1, 7, float("nan")):
            assert len(bar(share, width)) == width
            assert len(progress(share, 1, width)) == width
    assert bar(0.5, 4) == "██  "
    assert bar(0.53, 4) == "██▏ "
    assert bar(1e-9, 4) == "▏   "
    assert bar(0, 4) == "    "


def test_a_bar_is_full_only_at_the_end() -> None:
    assert progress(999_999, 1_000_000, 5) == "████▉"
    assert progress(1_000_000, 1_000_000, 5) == "█████"
    assert progress(3, 0, 5) == "     "


def test_a_progress_line_gives_up_the_lesser_first() -> None:
    wide = plain(progress_line(384, 512, "2,140 img/s", "0:41 left", 80))
    assert "75 %" in wide and "2,140 img/s" in wide and "0:41 left" in wide
    narrow = plain(progress_line(384, 512, "2,140 img/s", "0:41 left", 30))
    assert "75 %" in narrow and "0:41 left" in narrow and "img/s" not in narrow
    assert "99 %" in plain(progress_line(9999, 10_000, "", "", 30))
    assert "384" in plain(progress_line(384, 0, "", "", 30)) and "%" not in plain(progress_line(384, 0, "", "", 30))
    for width in range(0, 100):
        for total in (0, 512):
            assert cell_len(plain(progress_line(384, total, "2,140 img/s", "0:41 left", width))) == width


def test_the_difference_of_lines_is_the_cells_to_paint() -> None:
    assert difference([("abc", "")], [("abc", "")]) is None
    assert difference([("abc", "")], [("abX", "")]) == (2, 3)
    assert difference([("abc", "")], [("a", ""), ("b", "harm"), ("c", "")]) == (1, 2)
    assert difference([("画像c", "")], [("画xyc", "")]) == (2, 4)
    assert difference([("画a", "")], [("a画", "")]) == (0, 3)
    assert difference([("aab", "")], [("ab ", "")]) == (1, 3)
    rng = random.Random(1)
    for _ in range(300):
        old, new = ("".join(rng.choice("ab ") for _ in range(9)) for _ in range(2))
        span = difference(merged([(old, "")]), merged([(new, "")]))
        if span is None:
            assert old == new
        else:
            assert old[: span[0]] == new[: span[0]] and old[span[1] :] == new[span[1] :] and span[0] < span[1]
