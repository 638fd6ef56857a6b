"""Training as far as it has come: what the charts show. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine import events as ev

CHART_POINTS = 2000


@dataclass(frozen=True)
class Training:
    """``steps`` are (step, mean loss) in order, thinned to ``CHART_POINTS``; ``epochs`` are those that finished."""

    steps: tuple[tuple[int, float], ...] = ()
    epochs: tuple[ev.EpochFinished, ...] = ()
    now: ev.Step | None = None

    @property
    def best(self) -> ev.EpochFinished | None:
        return next((epoch for epoch in reversed(self.epochs) if epoch.best), None)


def trained(training: Training, event: ev.Event) -> Training:
    """``training`` after an event of it; other events change nothing."""
    match event:
        case ev.Step():
            steps = training.steps
            if event.loss is not None:
                # A resumed run does the steps after its checkpoint again.
                steps = (*(steps if not steps or steps[-1][0] < event.done else _before(steps, event.done)), (event.done, event.loss))
            return replace(training, steps=_thinned(steps), now=event)
        case ev.EpochFinished():
            return replace(training, epochs=(*(e for e in training.epochs if e.epoch < event.epoch), event))
    return training


def _before(steps: tuple[tuple[int, float], ...], done: int) -> tuple[tuple[int, float], ...]:
    return tuple(step for step in steps if step[0] < done)


def _thinned(steps: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    if len(steps) <= CHART_POINTS:
        return steps
    pairs = zip(steps[0::2], steps[1::2], strict=False)
    rest = steps[-1:] if len(steps) % 2 else ()
    return (*((b[0], (a[1] + b[1]) / 2) for a, b in pairs), *rest)
