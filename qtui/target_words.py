"""The targets of a search in words, as a sentence has them. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engine.errors import UsageError
from engine.recipe.targets import Target
from qtui import text


def bounds(targets: object) -> str:
    """``at most 0.20 MB and 4.5 bits a weight``; empty without targets."""
    found = targets if isinstance(targets, Iterable) and not isinstance(targets, str | Mapping) else ()
    said = [_bound(str(target)) for target in found]
    return f"at most {' and '.join(said)}" if said else ""


def _bound(written: str) -> str:
    try:
        target = Target.parse(written)
    except UsageError:
        return text.one_line(written)
    value = f"{target.value:g}"
    if target.kind == "size":
        return text.size(target.value) if target.unit else f"{value} of fp32's size"
    if target.kind == "latency":
        return f"{value} ms" if target.unit else f"{value} of fp32's time"
    return f"{value} bits a weight" if target.kind == "bpw" else f"a drop of {value}"


def outcome(search: Mapping[str, Any] | None) -> str:
    """What a report's search came to: ``The target of at most 0.20 MB is met.``; empty without one. A drop is judged on validation."""
    if not search or not (wanted := bounds(search.get("targets"))):
        return ""
    judged = " on validation" if "a drop of" in wanted else ""
    many = " and " in wanted
    verb = "are" if many else "is"
    return f"The target{'s' if many else ''} of {wanted} {verb}{'' if search.get('met') else ' not'} met{judged}."


def aimed(report: Mapping[str, Any] | None) -> tuple[str, str] | None:
    """What a report's search came to, and the role of that; None without one."""
    search = (report or {}).get("search") or {}
    return (said, "good" if search.get("met") else "harm") if (said := outcome(search)) else None
