"""Progress bars: one for the stage that runs, on a terminal only."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TextIO

from engine.events.event import Progress
from qtui.text import pace, plain, rate, seconds

if TYPE_CHECKING:
    from tqdm import tqdm

_FORMAT = "  {percentage:3.0f} %|{bar}| {n_fmt}/{total_fmt} {unit}{postfix}"


class Bars:
    """Draws on ``stream``, or nowhere when it is None; tells at the end of a stage what it went through."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._bar: tqdm[Any] | None = None
        self._last: Progress | None = None
        self._restarted = False

    def update(self, event: Progress) -> None:
        if self._last and (event.done < self._last.done or event.total != self._last.total):
            self._restarted = True
        self._last = event
        if self._stream is None:
            return
        with contextlib.suppress(OSError, ValueError):
            self._draw(event)

    def clear(self) -> None:
        """Take the bar off the screen, so that a line can be printed; the next progress draws it again."""
        if self._bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self._bar.clear()

    def finish(self, took: float) -> str:
        """End the stage's bar and sum it up: ``512 images, 430 images/s, 1.2 s``."""
        last, restarted = self._last, self._restarted
        self.close()
        if last is None or restarted:
            return seconds(took)
        parts = [f"{last.done:,} {plain(last.unit)}", seconds(took)]
        if last.rate is not None:
            parts.insert(1, rate(last.rate, plain(last.unit)))
        return ", ".join(parts)

    def close(self) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self._bar.close()
        self._bar, self._last, self._restarted = None, None, False

    def _draw(self, event: Progress) -> None:
        bar = self._bar = self._bar if self._bar is not None else self._new(event)
        bar.total, bar.n = event.total, event.done
        bar.set_postfix_str(pace(event), refresh=False)
        bar.refresh()

    def _new(self, event: Progress) -> tqdm[Any]:
        from tqdm import tqdm

        # Only the events draw: no thread that would write between the lines.
        tqdm.monitor_interval = 0
        return tqdm(file=self._stream, total=event.total, unit=plain(event.unit), leave=False, dynamic_ncols=True, bar_format=_FORMAT)
