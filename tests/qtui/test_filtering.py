"""A filter finds what is meant by its words: parts of names, and other columns by words of their own."""

from __future__ import annotations

import pytest

from qtui.filtering import matches

LAYER = {"kind": "Conv2d", "bits": 4, "sqnr": 18.5, "act": None}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("conv2", False),  # the kind is Conv2d: nobody sees it
        ("kind:conv2d", True), ("kind:Conv2d bits:4 sqnr<20", True), ("bits:8", False), ("bits=4", True), ("sqnr>=18.5", True),
        ("sqnr>20", False), ("act:8", False), ("act<9", False), ("kind:lin*", False), ("kind:conv*", True),
        ("denselayer?.norm", True), ("block1.*.norm", True), ("block2.*", False), ("DENSE", True), ("sqnr<much", False),
        ("unknown:4", False), ("", True),
    ],
)  # fmt: skip
def test_words_ask_for_names_and_columns(wanted: str, found: bool) -> None:
    assert matches(wanted, ["features.block1.denselayer5.norm"], LAYER) is found
