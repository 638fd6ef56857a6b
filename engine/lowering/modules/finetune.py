"""Fine-tuning of a decoder on low-bit weights: integers, scales, norms and biases learn from text and from the fp32 model."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.data.text.encoded import SequenceData, TextData
from engine.events.event import Event
from engine.lowering.modules.quantized import duplicate
from engine.lowering.modules.student import State, Student
from engine.numerics.qtensor import QTensor
from engine.training.finetune import TextWindows, TuneSchedule
from engine.training.loop import fit
from engine.training.text_batches import perplexity, perplexity_judge
from engine.training.trainable import TrainingContext


@dataclass(frozen=True)
class Tuned:
    """``weights`` are the integers and scales of the best epoch, ``model`` a copy of the student that holds what they stand for
    beside the norms and biases of that epoch. ``value`` is its perplexity on validation and ``start`` that before training,
    which ``epoch`` 0 means. ``losses`` and ``values`` hold each epoch's mean training loss in nats and validation perplexity."""

    model: Any
    weights: dict[str, QTensor]
    value: float
    epoch: int
    start: float
    losses: tuple[float, ...]
    values: tuple[float, ...]


class DistilledStudent:
    """``student`` as the training loop takes it, taught by text and by ``teacher``, the fp32 model.

    The loss of a token is ``distill`` times KL(teacher, student) and the rest the cross-entropy of the text (Hinton et al. 2015,
    arXiv:1503.02531, at temperature 1; for decoders of few bits Liu et al. 2023, arXiv:2305.17888).
    """

    def __init__(self, teacher: Any, student: Student, schedule: TuneSchedule) -> None:
        self._teacher, self._student, self._distill = teacher, student, schedule.distill
        self._groups = student.groups(schedule.places, schedule.scales)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Of the mean token, in nats."""
        ids, keep = batch
        scored = keep[:, 1:]
        answers = self._student.forward(ids)[:, :-1][scored].float().log_softmax(-1)
        loss = (1 - self._distill) * F.nll_loss(answers, ids[:, 1:][scored])
        if not self._distill:
            return loss
        with torch.no_grad():
            wanted = self._teacher(input_ids=ids, use_cache=False).logits[:, :-1][scored].float().log_softmax(-1)
        return loss + self._distill * F.kl_div(answers, wanted, reduction="batchmean", log_target=True)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return [{**group, "weight_decay": weight_decay} for group in self._groups]

    def parameters(self) -> Iterable[nn.Parameter]:
        return (parameter for group in self._groups for parameter in group["params"])

    def before_epoch(self, epoch: int) -> None:
        pass

    def after_step(self) -> None:
        self._student.bound()

    def after_epoch(self) -> None:
        self._student.settle()

    def state_dict(self) -> dict[str, Any]:
        return self._student.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._student.load_state_dict(state)

    def snapshot(self) -> dict[str, Any]:
        return self._student.state().write()


def finetune(
    teacher: Any, student: Any, weights: Mapping[str, QTensor], data: TextData | SequenceData, schedule: TuneSchedule,
    context: TrainingContext,
) -> Generator[Event, None, Tuned]:  # fmt: skip
    """Train ``weights`` (by module path) and the norms and biases of ``student``; embeddings and matrices without integers stay.

    ``teacher`` is the fp32 model, ``student`` the one that the weights were rounded in, whose norms and biases may differ from the
    teacher's; both are transformers models and stay as they are, the teacher on the context's device. Activations are float. Raises
    EngineError for too little text; for the rest see ``engine.training.loop.fit``.
    """
    windows = TextWindows(data, schedule, context.device)
    pupil = Student(duplicate(student).to(context.device), weights)
    judge = perplexity_judge(lambda: perplexity(data, pupil.logits, schedule.context, schedule.judged, context), before=True)
    fitted = yield from fit(DistilledStudent(teacher, pupil, schedule), windows, judge, schedule, context)
    assert fitted.start is not None
    best = State.read(fitted.best)
    best.put(pupil.model)
    model = pupil.model.requires_grad_(False)
    return Tuned(model, best.weights, fitted.value, fitted.epoch, fitted.start, fitted.losses, fitted.values)
