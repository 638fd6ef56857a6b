"""Charts and progress: painted only where they changed."""

from __future__ import annotations

import asyncio
from typing import Any

from textual.app import App, ComposeResult
from textual.widget import Widget

from qtui.drawing.line_chart import Series, line_chart
from qtui.drawing.spans import Line
from qtui.widgets.chart import Chart, Draw
from qtui.widgets.progress import ProgressLine
from qtui.widgets.sentence import Sentence


class Host(App[None]):
    def __init__(self, widget: Widget) -> None:
        super().__init__()
        self.widget = widget
        self.painted: list[int] = []
        real = widget.render_line

        def counted(y: int) -> Any:
            self.painted.append(y)
            return real(y)

        widget.render_line = counted  # type: ignore[method-assign]

    def compose(self) -> ComposeResult:
        yield self.widget


def curve(count: int) -> Draw:
    def draw(width: int, height: int) -> list[Line]:
        return line_chart([Series([(i, 1.0 - i / 100) for i in range(count)])], width, height, x_range=(0, 100))

    return draw


def test_a_chart_paints_the_lines_that_changed() -> None:
    async def main() -> None:
        chart = Chart()
        app = Host(chart)
        async with app.run_test(size=(80, 24)) as pilot:
            await pilot.pause()
            chart.show(curve(90))
            await pilot.pause()
            app.painted.clear()
            chart.show(curve(90))
            await pilot.pause()
            assert app.painted == []
            chart.show(lambda w, h: [*curve(90)(w, h)[:-1], [("x" * w, "harm")]])
            await pilot.pause()
            assert app.painted == [23]
            await pilot.resize_terminal(60, 20)
            await pilot.pause()
            assert chart.render_line(19).text == "x" * 60

    asyncio.run(main())


def test_a_chart_that_shows_before_it_has_a_size() -> None:
    async def main() -> None:
        chart = Chart(curve(5))
        chart.show(curve(50))
        async with Host(chart).run_test(size=(30, 6)) as pilot:
            await pilot.pause()
            assert any(char > "⠀" for char in chart.render_line(0).text)

    asyncio.run(main())


def test_progress_is_painted_when_its_text_changed() -> None:
    async def main() -> None:
        line = ProgressLine()
        app = Host(line)
        async with app.run_test(size=(80, 24)) as pilot:
            line.show(384, 512, "2,140 img/s", "0:41 left")
            await pilot.pause()
            app.painted.clear()
            line.show(384.001, 512, "2,140 img/s", "0:41 left")
            await pilot.pause()
            assert app.painted == []
            line.show(512, 512, "2,140 img/s")
            await pilot.pause()
            assert app.painted == [0]
            assert "100 %" in line.render_line(0).text

    asyncio.run(main())


def test_a_chart_that_was_given_something_else_while_hidden_shows_that() -> None:
    async def main() -> None:
        chart = Chart(curve(50))
        async with Host(chart).run_test(size=(30, 6)) as pilot:
            await pilot.pause()
            chart.render_line(0)
            size = chart.size
            chart._size = type(size)(0, 0)
            chart.show(lambda w, h: [[("x" * w, "")]] * h)
            chart._size = size
            assert chart.render_line(0).text == "x" * 30

    asyncio.run(main())


def test_a_sentence_that_does_not_fit_says_so() -> None:
    async def main() -> None:
        sentence = Sentence()
        async with Host(sentence).run_test(size=(30, 6)) as pilot:
            sentence.say("one two three four five six seven eight nine ten eleven twelve thirteen fourteen")
            await pilot.pause()
            assert "".join(str(sentence.render()).splitlines()[1:]).endswith(" …")
            sentence.say("short")
            assert str(sentence.render()) == "short"

    asyncio.run(main())
