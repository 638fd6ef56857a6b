"""Roles as styles, straight from the theme: component classes would be styled anew for each widget and each change of a class."""

from __future__ import annotations

from typing import Any

from rich.color import Color
from rich.style import Style
from textual.app import App

_ROLES: dict[str, tuple[str, str]] = {
    "dim": ("text-muted", ""), "accent": ("accent", "bold"), "key": ("accent", "bold"), "good": ("success", ""), "harm": ("error", "bold"),
    "change": ("warning", ""), "here": ("", "bold underline"), "strong": ("", "bold"),
}  # fmt: skip


def theme_style(app: App[Any], role: str) -> Style:
    """The style of a role in the app's theme; an unknown or empty one is plain."""
    variable, attributes = _ROLES.get(role, ("", ""))
    style = Style.parse(attributes) if attributes else Style.null()
    if not variable:
        return style
    return style + Style(color=Color.parse(app.theme_variables[variable][:7]))
