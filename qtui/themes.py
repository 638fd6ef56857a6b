"""The three themes: dark, light, and one that keeps its meaning for eyes that tell colours apart differently.

Each has one colour a meaning: ``accent`` for the cursor and what has the focus, ``warning`` for what will change, ``error`` for harm,
``success``. They are chosen so that the nearest of 256 colours still can be read. Of 16 colours the nearest is mostly grey, so a
terminal with 16 has a palette of its own, under the same names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from textual.theme import Theme

from qtui.terminal import depth, no_colour

if TYPE_CHECKING:
    from textual.app import App

DARK, LIGHT, SAFE = NAMES = ("qtui-dark", "qtui-light", "qtui-safe")


@dataclass(frozen=True)
class Palette:
    """The colours of a theme, by what they are for."""

    background: str
    surface: str
    panel: str
    foreground: str
    muted: str
    disabled: str
    accent: str
    warning: str
    error: str
    success: str
    cursor: str
    on_cursor: str
    resting: str
    """The cursor's row while another pane has the focus."""
    line: str
    """Borders without focus, scrollbars."""


PALETTES = {
    DARK: Palette(
        background="#121417", surface="#1a1d21", panel="#23272d", foreground="#d8dde3", muted="#9aa3ad", disabled="#727a84",
        accent="#5fafd7", warning="#d7af5f", error="#ff8787", success="#87d787", cursor="#1f5f99", on_cursor="#ffffff", resting="#2f353d",
        line="#454d57",
    ),
    LIGHT: Palette(
        background="#fafafa", surface="#f2f3f5", panel="#e8eaed", foreground="#1f2328", muted="#515962", disabled="#7d858f",
        accent="#005faf", warning="#6f4a00", error="#a8201a", success="#1f6b2b", cursor="#005faf", on_cursor="#ffffff", resting="#dfe3e8",
        line="#b4bbc4",
    ),
    # Okabe and Ito's hues: sky blue, yellow, vermillion and bluish green, both made brighter to be read, and blue below the cursor.
    SAFE: Palette(
        background="#000000", surface="#0e0e0e", panel="#161616", foreground="#e4e4e4", muted="#a8a8a8", disabled="#7a7a7a",
        accent="#56b4e9", warning="#f0e442", error="#ff7f32", success="#1fb88a", cursor="#0072b2", on_cursor="#ffffff", resting="#262626",
        line="#4e4e4e",
    ),
}  # fmt: skip
BLACK, RED, GREEN, BROWN, BLUE, _, CYAN, GREY = "#000000", "#aa0000", "#00aa00", "#aa5500", "#0000aa", "#aa00aa", "#00aaaa", "#aaaaaa"
DARK_GREY, PINK, LIME, YELLOW, _, _, AQUA, WHITE = "#555555", "#ff5555", "#55ff55", "#ffff55", "#5555ff", "#ff55ff", "#55ffff", "#ffffff"
# The cursor's text is not black on a colour: terminals that draw bold as bright would draw it dark grey.
_DARK_16 = Palette(
    background=BLACK, surface=BLACK, panel=BLACK, foreground=WHITE, muted=GREY, disabled=DARK_GREY, accent=AQUA, warning=YELLOW,
    error=PINK, success=LIME, cursor=BLUE, on_cursor=WHITE, resting=BLACK, line=GREY,
)  # fmt: skip
PALETTES_16 = {
    DARK: _DARK_16,
    LIGHT: Palette(
        background=WHITE, surface=WHITE, panel=WHITE, foreground=BLACK, muted=DARK_GREY, disabled=DARK_GREY, accent=BLUE, warning=BROWN,
        error=RED, success=GREEN, cursor=BLUE, on_cursor=WHITE, resting=WHITE, line=DARK_GREY,
    ),
    SAFE: Palette(**(vars(_DARK_16) | {"success": CYAN})),
}  # fmt: skip


def theme(name: str, palette: Palette) -> Theme:
    """The Textual theme of a palette."""
    p = palette
    return Theme(
        name=name, dark=name != LIGHT, primary=p.accent, secondary=p.accent, accent=p.accent, warning=p.warning, error=p.error,
        success=p.success, foreground=p.foreground, background=p.background, surface=p.surface, panel=p.panel,
        variables={
            "text": p.foreground, "text-muted": p.muted, "text-disabled": p.disabled, "foreground-muted": p.muted,
            "text-primary": p.accent, "text-secondary": p.accent, "text-accent": p.accent,
            "text-warning": p.warning, "text-error": p.error, "text-success": p.success,
            "block-cursor-background": p.cursor, "block-cursor-foreground": p.on_cursor, "block-cursor-text-style": "bold",
            "block-cursor-blurred-background": p.resting, "block-cursor-blurred-foreground": p.foreground,
            "block-cursor-blurred-text-style": "bold",
            "border": p.accent, "border-blurred": p.line,
            "scrollbar": p.line, "scrollbar-hover": p.muted, "scrollbar-active": p.accent, "scrollbar-background": p.background,
            "scrollbar-background-hover": p.background, "scrollbar-background-active": p.background, "scrollbar-corner-color": p.background,
            "footer-background": p.background, "footer-foreground": p.foreground, "footer-key-foreground": p.accent,
            "footer-description-foreground": p.muted,
            "input-selection-background": p.cursor, "input-selection-foreground": p.on_cursor,
            "screen-selection-background": p.cursor, "screen-selection-foreground": p.on_cursor,
            "button-color-foreground": p.background, "button-focus-text-style": "bold reverse",
            "link-color": p.accent, "link-background-hover": p.cursor, "link-color-hover": p.on_cursor,
        },
    )  # fmt: skip


def theme_for(env: Mapping[str, str], last: object = None) -> str:
    """The theme to start with: ``QTUI_THEME`` is dark, light or safe; where it says nothing known, that of the ``last`` time, or dark."""
    wanted = env.get("QTUI_THEME", "").strip().lower().removeprefix("qtui-")
    if f"qtui-{wanted}" in NAMES:
        return f"qtui-{wanted}"
    return last if isinstance(last, str) and last in NAMES else DARK


def palettes(env: Mapping[str, str]) -> Mapping[str, Palette]:
    """The palettes for what the terminal can show."""
    if depth(env) != "16":
        return PALETTES
    return {name: _plain(palette) for name, palette in PALETTES_16.items()} if no_colour(env) else PALETTES_16


def register(app: App[Any], env: Mapping[str, str] | None = None) -> None:
    """Make the themes known to the app. Called before the first frame, or that one is painted in Textual's own colours."""
    for name, palette in palettes(os.environ if env is None else env).items():
        app.register_theme(theme(name, palette))


def _plain(p: Palette) -> Palette:
    """Without hues: of four greys the nearest to red is too dark for a text, and the nearest to blue is black."""
    text = p.foreground
    return replace(p, accent=text, warning=text, error=text, success=text, cursor=p.muted, on_cursor=p.background)
