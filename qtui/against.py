"""``qtui compare``: what a shipped language model costs against the one that it was made of."""

from __future__ import annotations

import sys
from argparse import Namespace


def compare(args: Namespace) -> int:
    """Print perplexities, their difference with its interval, divergence and sizes."""
    from engine.events.cancellation import StopToken
    from engine.events.event import Notice
    from engine.runs.compare_models import compare as compared
    from qtui.listing import print_json
    from qtui.screen import Screen

    told = Screen(sys.stderr if args.json else sys.stdout)
    steps = compared(args.original, args.other, args.data, args.limit, StopToken())
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            found = end.value
            break
        if isinstance(event, Notice):
            told.line(f"{'warning: ' if event.level == 'warning' else ''}{event.text}")
    if args.json:
        return print_json(found.to_dict())
    rows = [
        (name, f"{size / 1e6:.2f} MB" if size else "", f"{value:.3f}")
        for name, size, value in zip(found.names, found.bytes, found.perplexities, strict=True)
    ]
    told.table(("model", "size", "perplexity"), rows)
    interval = "" if found.low is None or found.high is None else f" ({found.low:+.2%} to {found.high:+.2%} in 95 of 100)"
    told.line(
        f"Perplexity {found.rise:+.2%}{interval} on {found.tokens:,} tokens; the same next token {found.agreement:.2%}; "
        f"divergence {found.divergence:.4f} nats"
    )
    return 0
