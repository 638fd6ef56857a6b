"""The bytes a terminal sends, reduced to text that was typed or pasted.

Not all of them are: a terminal multiplexer that is attached again, or an editor that reloads, leaves mouse reports in a form that was
not asked for (X10: six raw bytes, seldom valid UTF-8), answers to another program's questions arrive late, lines cut sequences short.
Passed on they would act as keys, or end the program.
"""

from __future__ import annotations

import codecs
import re

PASTE_START, PASTE_END = b"\x1b[200~", b"\x1b[201~"
_NOT_KEYS = re.compile(
    rb"\x1b\[M[^\x1b]{3}"  # an X10 mouse report
    rb"|\x1b\[M[^\x1b]{0,2}(?=\x1b)"  # one that was cut short
    rb"|\x1b\[[<?>=]?[0-9;:]+(?=\x1b)"  # any sequence that was cut short
    rb"|\x1b\[[?>=][0-9;]*[@-Za-z]"  # an answer about the terminal; those Textual asks for end in $y
    rb"|\x1b[\]P_^X][^\x1b\x07]*(?:\x07|\x1b\\)"  # an answer as a string: colours, version
)
_UNFINISHED = re.compile(rb"\x1b(?:\[(?:M[^\x1b]{0,2}|[<?>=]?[0-9;:]*\$?)?)?\Z")
_KEYS_THEMSELVES = (b"\x1b", b"\x1b[")
_ODD = re.compile("[\ufffd\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x80-\x9f]")
_NO_TEXT = re.compile("[\ufffd\x80-\x9f]")
_NO_PASTE = re.compile("[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

# So many bytes at once are not typed; with this share of odd ones among them they are not text either.
_BURST, _ODD_SHARE = 64, 0.05
_PASTE_LIMIT = 65_536
_CUT_SHORT, _PASTE_LOST = 0.5, 2.0


class Typed:
    """Bytes in, text out; it keeps what a read has cut in two."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = b""
        self._noise = False
        self._room: int | None = None

    @property
    def waiting(self) -> bool:
        """Whether something is held back that ``idle`` should decide on soon."""
        return bool(self._held) or self._noise or self._room is not None

    def feed(self, data: bytes) -> str:
        """The text in what was read."""
        if self._noise:
            return ""
        data, self._held = self._held + data, b""
        text = []
        while data and not self._noise:
            if self._room is None:
                keys, marker, data = data.partition(PASTE_START)
                text.append(self._keys(keys, whole=bool(marker)))
                if marker and not self._noise:
                    text.append(PASTE_START.decode())
                    self._room = _PASTE_LIMIT
            else:
                body, marker, data = data.partition(PASTE_END)
                text.append(self._pasted(body, whole=bool(marker)))
                if marker:
                    text.append(PASTE_END.decode())
                    self._room = None
        return "".join(text)

    def idle(self, quiet: float) -> str:
        """What becomes text because nothing came for ``quiet`` seconds."""
        self._noise = False
        if self._held in _KEYS_THEMSELVES and self._room is None:
            held, self._held = self._held, b""
            return held.decode()
        if quiet >= _CUT_SHORT:
            self._decoder.reset()
            self._held = b""
        if quiet >= _PASTE_LOST and self._room is not None:
            self._room = None
            return PASTE_END.decode()
        return ""

    def _keys(self, data: bytes, whole: bool) -> str:
        data = _NOT_KEYS.sub(b"", data)
        if len(data) >= _BURST and len(_ODD.findall(data.decode("utf-8", "replace"))) > _ODD_SHARE * len(data):
            self._noise = True
            self._decoder.reset()
            return ""
        if unfinished := _UNFINISHED.search(data):
            # Ahead of a paste nothing can finish it any more.
            self._held = b"" if whole else unfinished.group()
            data = data[: unfinished.start()]
        return _NO_TEXT.sub("", self._decoder.decode(data))

    def _pasted(self, data: bytes, whole: bool) -> str:
        assert self._room is not None
        if not whole:
            cut = next((n for n in range(len(PASTE_END) - 1, 0, -1) if data.endswith(PASTE_END[:n])), 0)
            data, self._held = data[: len(data) - cut], data[len(data) - cut :]
        text = _NO_PASTE.sub("", self._decoder.decode(data, final=whole))[: self._room]
        self._room -= len(text)
        return text
