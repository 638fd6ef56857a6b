"""English sentences out of documentation: paragraphs on one line each, code and tables left out, nothing said twice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# A word of English text: letters, perhaps with an apostrophe or hyphens inside and punctuation around.
_WORD = re.compile(r"[\"'(`*\[]*[A-Za-z]+(?:['’\-/][A-Za-z]+)*[\"')`*\],.;:!?]*")
_COMMON_WORDS = (
    "a all an and any are as at be been but by can do does each else first for from given has have if in into is it its like may more "
    "must new no not of on one only or other otherwise raise return returns same set should so than that the their then there these "
    "this to two up use used uses using value was when where which while will with you your"
)  # fmt: skip
_COMMON = frozenset(_COMMON_WORDS.split())
_CODE = re.compile(
    r">>>|^\s*(?:\.\.\. |def |class |import |from \S+ import |@|\$ |# |\| )|::=|\w\(\)\s*$|[{}]|\\x|={2,}|-{4,}|\+-", re.MULTILINE
)
SHINGLE = 8


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of ``text`` that are prose, each as one line."""
    for block in re.split(r"\n[ \t]*\n", text.expandtabs()):
        lines = block.strip("\n").splitlines()
        # The underlining of a heading is not read aloud.
        line = " ".join(" ".join(part for part in lines if part.strip(" *=-~^#\"'`.")).split())
        if is_prose(line, block):
            yield line


def is_prose(line: str, block: str = "") -> bool:
    """Whether a paragraph reads as English sentences: three words or more, most of them plain, some of them common, no code."""
    words = line.split()
    if len(words) < 3 or not line.isascii() or "Copyright" in line or _CODE.search(block or line):
        return False
    plain = [word for word in words if _WORD.fullmatch(word)]
    common = sum(word.strip("\"'(`*[]),.;:!?").lower() in _COMMON for word in words)
    return len(plain) >= 0.75 * len(words) and common >= max(1, len(words) / 8)


class Novel:
    """Keeps what has not been said: a paragraph is dropped when over half of its runs of eight words occurred before, in
    whatever document, so that no sentence of one split is in another."""

    def __init__(self) -> None:
        self._seen: set[int | str] = set()

    def keep(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            words = re.findall(r"[a-z0-9_]+", line.lower())
            runs = {" ".join(words[i : i + SHINGLE]) for i in range(max(len(words) - SHINGLE + 1, 1))}
            if 2 * len(runs & self._seen) <= len(runs):
                yield line
            self._seen |= runs
