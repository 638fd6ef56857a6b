"""The order of the stages and the decisions between them, for every task and every lowering."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from engine.errors import EngineError, one_line
from engine.events.cancellation import Interrupted, StopToken
from engine.events.event import Changes, Event, Finished, Judgement, Layers, Measured, Notice
from engine.events.pictures import NAME as CHANGED
from engine.events.pictures import to_json
from engine.events.progress import quietly
from engine.kernels.limits import limits
from engine.kernels.probe import Machine
from engine.lowering.base import Baseline, Quantized
from engine.lowering.files import NAME
from engine.lowering.registry import captured, lowering_of
from engine.lowering.sensitivity import event_of
from engine.machine import ranks
from engine.planning.plan import Plan
from engine.planning.sensitivity import Sensitivity
from engine.recipe.changes import with_strategy
from engine.recipe.decisions import Answer, Inspect, Sensitive, Strategy
from engine.recipe.recipe import Recipe
from engine.report.advice import Advice, Harm, advice
from engine.report.figures import BaselineFigures, FormFigures, QuantizedFigures, TrainingFigures
from engine.report.limits import reached
from engine.report.report import SCHEMA, Report
from engine.report.runtimes import led
from engine.report.verdict import Verdict, better, met, verdict
from engine.runs.exporting import export, refusal
from engine.runs.gauge import Gauge
from engine.runs.kept import Kept, harms_of, harms_to_json
from engine.runs.measuring import Form, measure
from engine.runs.measuring import Measured as Measurement
from engine.runs.orders import with_orders
from engine.runs.rundir import RunDir
from engine.runs.searching import Search
from engine.runs.work import Run, Work, epochs_of
from engine.tasks.subject import Subject

CHECKPOINT = "checkpoints/qat.pt"
# Of what is told besides: it is not worth a run that goes on, or one that is quantized and measured.
_BESIDES = (EngineError, RuntimeError, MemoryError, ValueError, TypeError)
Which = Literal["ptq", "qat"]


class Job(Work):
    """One run, from the model to the report."""

    def __init__(self, recipe: Recipe, subject: Subject, machine: Machine, where: RunDir, stop: StopToken, attended: bool = False) -> None:
        super().__init__(recipe, machine, where, stop, attended)
        self.subject, self.task = subject, subject.task
        self.gauge = Gauge(stop.clock)
        self.lowering = lowering_of(subject, self)
        self._sensitivity: Sensitivity | None = None
        self._of_plan: Mapping[str, Harm] | None = None
        self._layers: dict[Which, list[dict[str, Any]]] = {}
        self._samples: dict[Which, list[dict[str, Any]]] = {}

    def environment(self) -> dict[str, Any]:
        subject = self.subject
        return {
            "torch": torch.__version__, "python": platform.python_version(), "device": subject.device, "isa": self.machine.isa,
            "vnni": self.machine.vnni, "threads": torch.get_num_threads(), "seed": self.recipe.seed, "recipe": self.recipe.fingerprint(),
            **subject.environment, **({"measured_on": "cpu"} if self._measured_elsewhere else {}),
        }  # fmt: skip

    def measured(self) -> dict[str, Any]:
        task = self.task
        return {
            "task": task.name, "measures": [metric.to_dict() for metric in task.metrics],
            "items": {"item": task.item, "plural": task.plural, "unit": task.unit},
        }  # fmt: skip

    @property
    def _measured_elsewhere(self) -> bool:
        """Whether a GPU calibrates and trains, and the processor is what is measured."""
        return self.subject.device != "cpu" and self.lowering.measures_on_cpu

    def run(self) -> Run[Report]:
        yield self.setting()
        lowering = self.lowering = yield from captured(self.lowering)
        plan = yield from self._plan()
        search = None
        if self.recipe.targets:
            search = Search(
                self, lowering, self.task, plan, self.subject.device, partial(self.sensitivity, plan), self.subject.fingerprint
            )  # fmt: skip
            plan = yield from search.run()
        plan = yield from lowering.settle(plan)
        if self.attended:
            yield from lowering.inspected(plan)
        kept = Kept(self.where, self.recipe, plan, self.subject.fingerprint)
        statistics = yield from self.stage("calibrate", lowering.calibration, self._calibrated(plan, kept))
        quantized = yield from self.stage("convert", lowering.conversion, lowering.convert(plan, statistics))
        seconds = self.seconds + quantized.seconds
        before = lowering.baseline()
        steps = self._measured(quantized, before, seconds, kept)
        measured = yield from self.stage("evaluate", f"Measuring on validation and test {self.task.plural}", steps)
        baseline, ptq = measured.baseline, measured.form
        yield from _told(baseline, ptq.figures)
        if self.attended:
            yield from ranks.by_first(self._judge("ptq", plan, ptq, baseline))
        self._keep_measured(measured, kept)
        baseline, ptq, trained, training = yield from self._train(plan, before, baseline, ptq)
        if self.attended and trained and training:
            yield from ranks.by_first(self._judge("qat", plan, trained, baseline, training.why, ptq))
        finished = self._reported(plan, statistics, search, before, baseline, ptq, trained, training)
        report = yield from ranks.by_first(finished)
        kept.forget()
        return report

    def _reported(
        self, plan: Plan, statistics: Any, search: Search | None, before: Baseline, baseline: BaselineFigures, ptq: Form,
        trained: Form | None, training: TrainingFigures | None,
    ) -> Run[Report]:  # fmt: skip
        """The verdict, the files and the report, of what was measured."""
        lowering = self.lowering
        which: Which = "qat" if trained and training and training.kept else "ptq"
        chosen = trained if trained and which == "qat" else ptq
        found = self._verdict(which, chosen, baseline, training.why if training else None, ptq if which == "qat" else None)
        layers = self._layer_results(which, plan, chosen.quantized)
        advised = self._advice(found, plan, search)
        # What a search was to come to is judged beside the threshold.
        over = search.over(search.chosen) if search and search.chosen else ()
        text = f"{found.text} {'Target' if len(over) == 1 else 'Targets'} {', '.join(over)} not met." if over else found.text
        judged = {**found.to_dict(), "text": text, **(advised.to_dict() if advised else {})}
        if advised:
            yield Notice(advised.text)
        yield lowering.layer_table(layers)
        samples = yield from self._described(which, before, chosen.quantized)
        changed = self._changed(which, chosen)
        if changed is not None:
            yield changed
        self.where.keep(NAME, chosen.quantized.content)
        exported = yield from self.stage("export", "Exporting", export(self, lowering, chosen, before, baseline))
        forms = {"fp32": baseline, "ptq": ptq.figures, **({"qat": trained.figures} if trained else {})}
        data = led({
            "schema": SCHEMA, "model": self.recipe.model, **self.measured(), "lowering": lowering.name,
            "data": self.task.data(self.recipe.data.calibration, self.recipe.data.limit), "environment": self.environment(),
            "graph": lowering.graph(), "layers": layers, "baseline": baseline.to_dict(), "ptq": ptq.figures.to_dict(),
            "qat": training.to_dict() if training else None, "verdict": judged, **exported,
            "metrics": {name: values_of(figures) for name, figures in forms.items()},
            "workloads": [workload.to_dict() for workload in self.task.workloads],
            **({"changed": _without_name(changed)} if changed else {}), **({"samples": samples} if samples else {}),
            **lowering.details(plan, statistics, chosen.quantized), "resources": self.gauge.entries(),
            **({"search": self._searched(search, chosen, baseline, training)} if search else {}),
        })  # fmt: skip
        data |= {"limits": far} if (far := self._limits(data)) else {}
        report = with_orders(Report(data), self.recipe, self.where.path)
        text = report.data["verdict"]["text"]
        self.where.write("report.md", report.to_markdown())
        self.where.write("report.json", report.to_json())
        told = {"chosen": found.chosen, "baseline": baseline.value, "value": chosen.figures.value, "metric": self.task.metric.name}
        told["measure"] = self.task.metric.to_dict()
        self.where.state("finished", text, **told)
        lowering.close()
        yield Finished(str(self.where.path), found.met and not over, text)
        return report

    def _limits(self, data: Mapping[str, Any]) -> dict[str, Any] | None:
        """How far from the processor's limits the times are; None where a GPU took them, or none were taken."""
        on_gpu = self.subject.device != "cpu" and not self.lowering.measures_on_cpu
        found = None if on_gpu or not self.task.workloads else limits(self.machine)
        return None if found is None else reached(data, found.to_dict())

    def _calibrated(self, plan: Plan, kept: Kept) -> Run[Any]:
        """What the calibration gathers, or had gathered before the run was stopped."""
        state = kept.calibration()
        statistics = self.lowering.restored(plan, state) if state is not None else None
        if state is not None and statistics is not None:
            self.seconds += float(state.get("seconds") or 0.0)
            yield Notice("the calibration is kept from before the run was stopped")
            return statistics
        began = self.stop.clock()
        statistics = yield from self.lowering.calibrate(plan)
        kept.keep_calibration(self.lowering.kept(statistics), self.stop.clock() - began)
        return statistics

    def _measured(self, quantized: Quantized, before: Baseline, seconds: float, kept: Kept) -> Run[Measurement]:
        """The figures of PTQ and of fp32, measured or as they were measured before the run was stopped."""
        found = kept.measured(quantized)
        if found is None:
            return (yield from measure(self.task, quantized, before, self.recipe, self.stop, self.subject.device, seconds))
        measured, about = found
        yield Notice("what was measured is kept from before the run was stopped")
        if about.get("layers") is not None:
            self._layers["ptq"], self._of_plan = about["layers"], harms_of(about["harms"])
        if about.get("samples") is not None:
            self._samples["ptq"] = about["samples"]
        return measured

    def _keep_measured(self, measured: Measurement, kept: Kept) -> None:
        kept.keep_measured(
            measured, {"layers": self._layers.get("ptq"), "harms": harms_to_json(self._of_plan), "samples": self._samples.get("ptq")}
        )

    def planned(self, place: Path) -> Run[Plan]:
        """What a run in ``place`` would do, without doing it: the plan, and what it takes. Raises UsageError for an export that cannot be
        made, EngineError where memory or disk do not suffice."""
        lowering = self.lowering = yield from captured(self.lowering)
        plan = yield from self.stage("plan", "Planning", lowering.plan())
        if (refused := refusal(self.recipe, self.subject, plan)) is not None:
            raise refused
        needs = lowering.needs(plan, place)
        if needs is not None:
            yield needs
            if needs.short:
                raise EngineError(needs.short)
            yield Notice(needs.text)
        return plan

    def _plan(self) -> Run[Plan]:
        """The plan that was agreed to, made again for each strategy that is asked for. Raises UsageError where one is agreed to that an
        export of the recipe cannot be made of."""
        answer: Answer = None
        while True:
            plan = yield from self.stage("plan", "Planning", self.lowering.plan())
            refused = refusal(self.recipe, self.subject, plan)
            if refused is not None:
                yield Notice(str(refused), "warning")
            elif isinstance(answer, Strategy) and answer.go:
                return plan
            answer = yield from self.ask("quantize", "Quantize?", needed=True)
            while isinstance(answer, Sensitive | Inspect):
                if isinstance(answer, Inspect):
                    steps = self.lowering.inspect(plan, answer.path, answer.spec)
                    yield from self.stage("inspect", f"Looking at {answer.path}", steps)
                elif answer.measured == ():
                    yield from self._estimated(plan)
                else:
                    yield from self.stage("sensitivity", "Estimating what each layer costs", self.sensitivity(plan, answer.measured))
                answer = yield from self.ask("quantize", "Quantize?", needed=True)
            if not isinstance(answer, Strategy):
                if refused is not None:
                    raise refused
                return plan
            yield from self.change(with_strategy(self.recipe, answer.preset, answer.rules))

    def _searched(self, search: Search, chosen: Form, baseline: BaselineFigures, training: TrainingFigures | None) -> dict[str, Any]:
        """The report's ``search``: what was tried on validation, training included, and what the chosen model has on test."""
        found, metric = search.entry(), self.task.metric
        if training is not None:
            value = training.figures.validation["value"]
            drop = metric.drop(training.figures.validation["baseline"], value)
            size = training.figures.size_bytes
            row = {"title": "QAT", "value": value, "drop": drop, "size_bytes": size, "size": size / baseline.size_bytes}
            found["tried"].append({**row, "seconds": training.figures.seconds, "kept": training.kept})
        size = chosen.figures.size_bytes
        found["test"] = {
            "value": chosen.figures.value, "drop": metric.drop(baseline.value, chosen.figures.value), "size_bytes": size,
            "size": size / baseline.size_bytes,
        }  # fmt: skip
        return found

    def sensitivity(self, plan: Plan, measured: Sequence[tuple[str, str]] | None = ()) -> Run[Sensitivity]:
        """What each candidate of each layer costs, estimated once in a run; and measured, of all of them where that is None."""
        if self._sensitivity is None:
            self._sensitivity = yield from ranks.by_first(self.lowering.sensitivity(plan))
        else:
            yield event_of(self._sensitivity)
        if measured is None or measured:
            self._sensitivity = yield from self.lowering.measured_sensitivity(plan, self._sensitivity, measured)
        return self._sensitivity

    def _estimated(self, plan: Plan) -> Run[None]:
        """The estimate alone, which an answer to the open question interrupts, and which no run ends for."""
        try:
            with self.stop.beside():
                found = yield from self.stage("sensitivity", "Estimating what each layer costs", self.sensitivity(plan))
        except Interrupted:
            return
        except _BESIDES as error:
            yield Notice(f"what each layer costs could not be estimated: {one_line(error)}", "warning")
            found = self._sensitivity = Sensitivity((), "noise", 0)
        if not found.layers:
            # That there is nothing is an answer too.
            yield event_of(found)

    def _verdict(self, which: Which, form: Form, baseline: BaselineFigures, trained: str | None = None, ptq: Form | None = None) -> Verdict:
        """``trained`` is what came of QAT, ``ptq`` the form before it where ``which`` is ``qat``."""
        where = " on the processor" if self._measured_elsewhere else ""
        task, before = self.task, ptq.quality["test"] if ptq else None
        return verdict(
            which, task.metric, task.workloads, form.figures, baseline, form.quality["test"], self.threshold, trained, where, before,
            task.doubt,
        )  # fmt: skip

    def _layer_results(self, which: Which, plan: Plan, quantized: Quantized) -> list[dict[str, Any]]:
        if which not in self._layers:
            harms = self._harms(plan)
            rows = self.lowering.layer_results(plan, quantized)
            self._layers[which] = [{**row, "harm": harms[row["name"]].total if row["name"] in harms else None} for row in rows]
        return self._layers[which]

    def _harms(self, plan: Plan) -> Mapping[str, Harm]:
        """What each layer costs as it is, estimated once."""
        if self._of_plan is None:
            try:
                found = quietly(self.lowering.harm(plan), self.stop)
            except _BESIDES:
                found = Sensitivity((), "noise", 0)
            parts = {path: found.of(path).values() for path in found.paths}
            self._of_plan = {
                path: Harm(path, *(sum(one.loss_increase for one in several if one.candidate[0] == part) for part in "wa"))
                for path, several in parts.items()
            }
        return self._of_plan

    def _advice(self, found: Verdict, plan: Plan, search: Search | None) -> Advice | None:
        if found.met:
            return None
        return advice(list(self._harms(plan).values()), plan.layers, found.threshold, search is not None)

    def _described(self, which: Which, before: Baseline, quantized: Quantized) -> Run[list[dict[str, Any]]]:
        if which not in self._samples:
            models = {"fp32": before.reference, "quantized": quantized.model}
            self._samples[which] = yield from self.task.describe(models, self.stop)
        return self._samples[which]

    def _changed(self, which: Which, form: Form) -> Changes | None:
        """The items whose answer changed most, with their pictures in the run's folder."""
        found = form.changes
        if found is None:
            return None
        if found.pictures:
            self.where.write(CHANGED, to_json(found.pictures))
        return Changes(which, found.items, found.changed, found.worse, found.better, found.rows)

    def _judge(
        self, which: Which, plan: Plan, form: Form, baseline: BaselineFigures, trained: str | None = None, ptq: Form | None = None
    ) -> Run[None]:
        """What a person wants to see before the next decision: the layers, and the verdict if the run ended here."""
        yield Layers(which, tuple(self._layer_results(which, plan, form.quantized)))
        yield from self._described(which, self.lowering.baseline(), form.quantized)
        yield Judgement(which, self._verdict(which, form, baseline, trained, ptq).to_dict())

    def _train(
        self, plan: Plan, before: Baseline, baseline: BaselineFigures, ptq: Form
    ) -> Run[tuple[BaselineFigures, Form, Form | None, TrainingFigures | None]]:
        """PTQ, timed once more where QAT came after it; and QAT where it is due and wanted."""
        metric, lowering = self.task.metric, self.lowering
        is_met = all(met(self.threshold, metric, ptq.quality[split]) for split in ("validation", "test"))
        if not lowering.trainable(plan, ptq.quantized) or not (yield from self.wants_training(lowering.training_question, is_met)):
            return baseline, ptq, None, None
        part, began = self.recipe.qat, self.stop.clock()
        steps = lowering.train(plan, ptq.quantized, self.where.path / CHECKPOINT)
        trained = yield from self.stage("qat", f"Training for {epochs_of(part.epochs)}", steps)
        converting = lowering.convert_trained(plan, ptq.quantized, trained)
        model = yield from self.stage("convert", lowering.conversion_of_trained, converting)
        seconds = self.stop.clock() - began
        measuring = measure(self.task, model, before, self.recipe, self.stop, self.subject.device, seconds, ptq)
        measured = yield from self.stage("evaluate", "Measuring the trained model", measuring)
        assert measured.earlier is not None
        baseline, ptq, form = measured.baseline, measured.earlier, measured.form
        kept, why = better(metric, self.threshold, form.quality, ptq.quality)
        training = TrainingFigures(form.figures, part.epochs, trained.best_epoch, trained.losses, trained.values, kept, why)
        yield from _told(baseline, ptq.figures)
        yield Measured("qat", training.to_dict(), values_of(form.figures))
        return baseline, ptq, form, training


def values_of(figures: FormFigures) -> dict[str, Any]:
    """All of the task's metrics of a form, for the report's ``metrics``."""
    return {name: value.to_dict() for name, value in figures.metrics.items()}


def _without_name(event: Event) -> dict[str, Any]:
    return {key: value for key, value in event.to_dict().items() if key != "event"}


def _told(baseline: BaselineFigures, ptq: QuantizedFigures) -> Iterator[Measured]:
    yield Measured("baseline", baseline.to_dict(), values_of(baseline))
    yield Measured("ptq", ptq.to_dict(), values_of(ptq))
