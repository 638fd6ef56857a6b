"""The themes can be read: in full colour, in the nearest of 256 and of 16 colours, and as greys."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rich._palettes import EIGHT_BIT_PALETTE, STANDARD_PALETTE
from rich.color import ColorSystem
from textual.app import App
from textual.color import Color

from qtui import themes

TEXT = (
    "foreground",
    "text",
    "text-muted",
    "accent",
    "warning",
    "error",
    "success",
    "text-accent",
    "text-warning",
    "text-error",
    "text-success",
)
GROUNDS = ("background", "surface", "panel")
Reduce = Callable[[Color], Color]


def to_256(colour: Color) -> Color:
    number = colour.rich_color.downgrade(ColorSystem.EIGHT_BIT).number
    assert number is not None
    return Color(*EIGHT_BIT_PALETTE[number])


def to_16(colour: Color) -> Color:
    number = colour.rich_color.downgrade(ColorSystem.STANDARD).number
    assert number is not None
    return Color(*STANDARD_PALETTE[number])


def as_it_is(colour: Color) -> Color:
    return colour


def grey(colour: Color) -> Color:
    return colour.monochrome


def grey_of_16(colour: Color) -> Color:
    return to_16(colour.monochrome)


# What a terminal makes of a colour; which palette it gets; the contrast that is left at least.
WAYS: list[tuple[Reduce, dict[str, themes.Palette], float]] = [
    (as_it_is, themes.PALETTES, 4.5),
    (to_256, themes.PALETTES, 4.5),
    (grey, themes.PALETTES, 4.5),
    (to_16, themes.PALETTES_16, 3.0),
    (grey_of_16, dict(themes.palettes({"TERM": "xterm", "NO_COLOR": "1"})), 3.0),
]
every_way = pytest.mark.parametrize(("reduce", "palettes", "least"), WAYS, ids=lambda value: getattr(value, "__name__", ""))
every_theme = pytest.mark.parametrize("name", themes.NAMES)


def luminance(colour: Color) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour.normalized]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: Color, other: Color) -> float:
    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def variables(name: str, palettes: dict[str, themes.Palette]) -> dict[str, str]:
    theme = themes.theme(name, palettes[name])
    return theme.to_color_system().generate() | theme.variables


def weak(
    name: str, palettes: dict[str, themes.Palette], reduce: Reduce, texts: tuple[str, ...], ground: str, least: float
) -> dict[str, float]:
    """The texts that cannot be read on that ground."""
    found = variables(name, palettes)
    below = reduce(Color.parse(found[ground]))
    ratios = {text: contrast(reduce(Color.parse(found[text])), below) for text in texts}
    return {text: round(ratio, 2) for text, ratio in ratios.items() if ratio < least}


@every_theme
@every_way
@pytest.mark.parametrize("ground", GROUNDS)
def test_text_can_be_read(name: str, reduce: Reduce, palettes: dict[str, themes.Palette], least: float, ground: str) -> None:
    assert weak(name, palettes, reduce, TEXT, ground, least) == {}
    assert weak(name, palettes, reduce, ("text-disabled",), ground, 2.5) == {}


@every_theme
@every_way
def test_the_cursor_can_be_seen_and_read(name: str, reduce: Reduce, palettes: dict[str, themes.Palette], least: float) -> None:
    assert weak(name, palettes, reduce, ("block-cursor-foreground",), "block-cursor-background", 4.5) == {}
    for ground in ("background", "surface") if palettes is themes.PALETTES else ():
        assert weak(name, palettes, reduce, ("block-cursor-background",), ground, 2.0) == {}
    assert weak(name, palettes, reduce, TEXT, "block-cursor-blurred-background", min(least, 3.9)) == {}


@every_theme
@every_way
def test_the_cursor_differs_from_the_ground(name: str, reduce: Reduce, palettes: dict[str, themes.Palette], least: float) -> None:
    palette = palettes[name]
    assert reduce(Color.parse(palette.cursor)) != reduce(Color.parse(palette.surface))


@every_theme
@pytest.mark.parametrize(("reduce", "palettes"), [(as_it_is, themes.PALETTES), (to_256, themes.PALETTES), (to_16, themes.PALETTES_16)])
def test_each_meaning_has_a_colour_of_its_own(name: str, reduce: Reduce, palettes: dict[str, themes.Palette]) -> None:
    p = palettes[name]
    found = [reduce(Color.parse(c)).hex for c in (p.foreground, p.muted, p.accent, p.warning, p.error, p.success)]
    assert len(set(found)) == len(found)


def seen_by(colour: Color, matrix: tuple[tuple[float, float, float], ...]) -> Color:
    """A colour as someone sees it who lacks a kind of cone."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour.normalized]
    mixed = [min(1.0, max(0.0, sum(m * c for m, c in zip(row, linear, strict=True)))) for row in matrix]
    return Color(*(round(255 * (12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055)) for c in mixed))


# Machado, Oliveira and Fernandes 2009, severity 1.
BLIND = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


@pytest.mark.parametrize("kind", BLIND)
def test_the_safe_theme_tells_harm_change_and_success_apart(kind: str) -> None:
    p = themes.PALETTES[themes.SAFE]
    seen = [seen_by(Color.parse(c), BLIND[kind]) for c in (p.warning, p.error, p.success)]
    distances = [sum((a - b) ** 2 for a, b in zip(x.rgb, y.rgb, strict=True)) ** 0.5 for i, x in enumerate(seen) for y in seen[:i]]
    assert min(distances) > 50


@pytest.mark.parametrize(
    ("wanted", "name"),
    [("", "qtui-dark"), ("light", "qtui-light"), (" SAFE ", "qtui-safe"), ("qtui-light", "qtui-light"), ("nord", "qtui-dark")],
)
def test_the_theme_to_start_with(wanted: str, name: str) -> None:
    assert themes.theme_for({"QTUI_THEME": wanted}) == name
    assert themes.theme_for({}) == themes.DARK


@pytest.mark.parametrize(("term", "palettes"), [("xterm", themes.PALETTES_16), ("xterm-256color", themes.PALETTES)])
def test_an_app_gets_the_colours_of_its_terminal(term: str, palettes: dict[str, themes.Palette]) -> None:
    app: App[None] = App()
    themes.register(app, {"TERM": term})
    for name in themes.NAMES:
        app.theme = name
        assert app.get_css_variables()["block-cursor-background"] == palettes[name].cursor
