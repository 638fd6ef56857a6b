"""The language of the filter line: parts of names, and words of their own for what stands in other columns."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase, translate

About = Mapping[str, object]
"""What a row says in its other columns, by the word that asks for it: ``kind``, ``bits``, ``sqnr``."""

_WORD = re.compile(r"([a-z]+)(<=|>=|[:=<>])(.+)")
_COMPARED: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def matches(wanted: str, names: Iterable[str], about: About | None = None) -> bool:
    """Whether each word of ``wanted`` holds of a row. A word is a part of one of ``names``, in any case of letters; with ``*`` or
    ``?`` it is a pattern of one or more of its components. ``kind:conv2d``, ``bits:4`` and ``sqnr<20`` ask for what ``about``
    holds under that word; a figure that a row does not have is not below, and not above, any other. An empty text matches all.

    >>> matches("layer1.*.conv1", ["body.layer1.0.conv1"]), matches("conv2", ["features.0"], {"kind": "Conv2d"})
    (True, False)
    """
    found = [name.lower() for name in names]
    return all(_holds(word, found, about or {}) for word in wanted.lower().split())


def _holds(word: str, names: list[str], about: About) -> bool:
    asked = _WORD.fullmatch(word)
    if asked is not None and asked[1] in about:
        return _is(about[asked[1]], asked[2], asked[3])
    if "*" in word or "?" in word:
        # Of whole components: ``layer?.conv1`` is in ``body.layer1.conv1``, and ``vgg1?`` is no part of ``vgg11_bn``.
        pattern = re.compile(rf"(?:^|[./]){translate(word)[:-2]}(?=$|[./])")
        return any(pattern.search(name) for name in names)
    return any(word in name for name in names)


def _is(value: object, sign: str, wanted: str) -> bool:
    if sign in _COMPARED:
        try:
            return isinstance(value, int | float) and _COMPARED[sign](value, float(wanted))
        except ValueError:
            return False
    if isinstance(value, int | float):
        try:
            return value == float(wanted)
        except ValueError:
            return False
    return value is not None and fnmatchcase(str(value).lower(), wanted if set(wanted) & set("*?") else f"*{wanted}*")
