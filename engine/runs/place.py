"""How far a run has come, in words, by its events: for the list of runs, and for who resumes it."""

from __future__ import annotations

from engine.events.event import Ask, EpochFinished, Event, Progress, StageFinished, StageStarted, Step

_NAMES = {
    "load": "loading", "trace": "tracing", "analyze": "the search for pairs", "fuse": "folding", "plan": "planning",
    "calibrate": "calibration", "convert": "conversion", "evaluate": "measuring", "qat": "QAT", "train": "training", "search": "the search",
    "sensitivity": "the estimate of harm", "inspect": "a look at a layer", "export": "the export",
}  # fmt: skip
_QUESTIONS = {
    "trace": "before tracing", "analyze": "before its graph was analysed", "optimize": "at the question of folding",
    "quantize": "at its strategy", "qat": "at the question of training",
}  # fmt: skip


class Place:
    """``see`` takes the events in; ``text`` says where the run is: ``QAT epoch 2 of 5, step 310``, ``calibration, 128 of 512 img``."""

    def __init__(self) -> None:
        self.text = _NAMES["load"]
        self._stage = ""

    def see(self, event: Event) -> bool:
        """Whether a stage, an epoch or a question began: what is worth writing down."""
        match event:
            case StageStarted():
                self._stage = event.stage
                self.text = _NAMES.get(event.stage, event.stage)
                return True
            case Ask():
                self.text = _QUESTIONS.get(event.key, f"at {event.key}")
                return True
            case StageFinished() if event.stage == "load":
                self.text = "after loading"
            case Progress() if event.stage == self._stage and event.done and self._stage not in ("qat", "train"):
                self.text = f"{_NAMES.get(event.stage, event.stage)}, {event.done:,} of {event.total:,} {event.unit}"
            case Step():
                before = round((event.epoch - 1) * event.total / max(event.epochs, 1))
                first = f"epoch {event.epoch} of {event.epochs}" not in self.text
                self.text = f"{_NAMES.get(event.stage, event.stage)} epoch {event.epoch} of {event.epochs}, step {event.done - before:,}"
                return first
            case EpochFinished():
                self.text = f"{_NAMES.get(event.stage, event.stage)} after epoch {event.epoch} of {event.epochs}"
                return True
        return False
