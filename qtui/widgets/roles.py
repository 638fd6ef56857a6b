"""Drawn lines on a widget: the styles a theme gives their roles, and a repaint of the cells that changed alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from qtui.drawing.spans import Line, Span, difference

_REVERSE = Style(reverse=True, bold=True)


def style_of(widget: Widget, prefix: str, role: str, *over: str) -> Style:
    """The style of ``role``, with those of the roles in ``over`` laid on it; a role without a component class is plain text."""
    known = widget._get_component_classes()
    names = (f"{prefix}--{name}" for name in (role, *over))
    return widget.get_visual_style(*(name for name in names if name in known)).rich_style


def component_classes(prefix: str, roles: Iterable[str]) -> set[str]:
    """The names of the component classes behind ``roles``."""
    return {f"{prefix}--{role}" for role in roles}


def strip(widget: Widget, prefix: str, line: Iterable[Span], *over: str, reverse: bool = False) -> Strip:
    """A line of spans in the styles of a widget's component classes."""
    segments = []
    for text, role in line:
        style = style_of(widget, prefix, role, *over)
        segments.append(Segment(text, style + _REVERSE if reverse else style))
    return Strip(segments)


def repaint(widget: Widget, before: Sequence[Line], after: Sequence[Line]) -> None:
    """Ask for the cells in which the lines of a widget differ to be painted again."""
    if len(before) != len(after):
        widget.refresh()
        return
    for y, (old, new) in enumerate(zip(before, after, strict=True)):
        span = difference(old, new)
        if span is not None:
            widget.refresh(Region(span[0], y, span[1] - span[0], 1))
