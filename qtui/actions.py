"""Every key, once: this table gives the bindings, the footer, the palette, the help and the table of keys in qtui/README.md.

A screen that is not in it brings its own as ``ACTIONS``. An action ``x`` is the method ``do_x`` of the screen it belongs to, or of the app where ``where`` is ``("*",)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qtui import reasons
from qtui.stage_table import StageDef, registry, screen_class
from qtui.state import State

EVERYWHERE = ("*",)
Reason = Callable[[State], str | None]


@dataclass(frozen=True)
class Action:
    """``keys`` in Textual's names, the first is shown; ``footer`` ranks it in the footer (0: not there, the highest goes
    last); ``why_not`` gives the sentence that says why it cannot act now, or None; ``goes`` is the stage that it shows, which takes no method."""

    id: str
    keys: tuple[str, ...]
    label: str
    help: str
    where: tuple[str, ...]
    footer: int = 0
    why_not: Reason = reasons.never
    group: str = ""
    goes: str = ""


def _to(place: int, stage: StageDef) -> Action:
    """The key that goes to a stage: its number, as far as there are digits."""
    keys = (str(place),) if place <= 9 else ()
    name = stage.name or f"the {stage.title.lower()}"
    return Action(
        f"stage_{stage.id}", keys, stage.title, f"Go to {name}.", EVERYWHERE, group="stages", why_not=stage.unavailable, goes=stage.id
    )


def everywhere() -> tuple[Action, ...]:
    """The actions of all screens."""
    return (
        Action("help", ("question_mark",), "help", "The keys of this screen, and what they do.", EVERYWHERE, 1),
        Action("figures", ("f1",), "what figures mean", "What the columns of the table in front mean, each in two sentences.", EVERYWHERE),
        Action("palette", ("ctrl+p",), "all actions", "Find any action by name.", EVERYWHERE),
        *(_to(place, stage) for place, stage in enumerate(registry(), 1)),
        Action("back", ("escape",), "back", "Back out: of a panel, or of a filter; Esc never quits.", EVERYWHERE),
        Action("previous", ("left_square_bracket",), "stage before", "Go to the stage before this one.", EVERYWHERE, group="stages"),
        Action("halt_run", ("X",), "stop the run", "Stop what is at work or waits for an answer; it is saved, and r on the first screen resumes it.", EVERYWHERE, 0, reasons.nothing_to_stop),
        Action("log", ("L",), "log", "Show or hide what the engine said.", EVERYWHERE),
        Action("machine", ("M",), "machine", "What this machine can run: instructions, kernels, GPUs, optional packages.", EVERYWHERE, 0, reasons.no_machine),
        Action("sort", ("full_stop",), "sort", "Order the table by its next column, the largest first; after the last as it was. A click on a header does it too.", EVERYWHERE, group="tables"),
        Action("turn_order", ("comma",), "turn the order", "The smallest first, or the largest again.", EVERYWHERE, group="tables"),
        Action("copy_row", ("Y",), "copy the row", "Copy the row under the cursor to the clipboard, its cells with tabs between them.", EVERYWHERE, group="tables"),
        Action("save_table", ("greater_than_sign",), "table as CSV", "Write the table as a CSV file into the run's folder.", EVERYWHERE, group="tables"),
        Action("repaint", ("ctrl+l",), "paint anew", "Paint the whole screen anew, where another program has written on it.", EVERYWHERE),
        Action("theme", ("T",), "theme", "Change between dark, light and colour-blind safe.", EVERYWHERE),
        Action("quit", ("q", "ctrl+q", "ctrl+c"), "quit", "Leave; work that runs is stopped and saved if you say so.", EVERYWHERE),
    )  # fmt: skip


def _models() -> tuple[Action, ...]:
    where = ("model",)
    return (
        Action("filter", ("slash",), "filter", "Show only the lines that hold a text; Esc shows all.", where, 2),
        Action("data", ("d",), "data", "Choose the data set or text, or give a folder of your own.", where, 3, reasons.busy),
        Action("own", ("o",), "your own", "Give your own model: file.py:factory, package.module:factory, or a language model's folder or OWNER/MODEL.", where, 0, reasons.busy),
        Action("task", ("a",), "task", "Choose what is measured of your own model: a task of the list, or your own as path/task.py:factory.", where, 0, reasons.busy),
        Action("weights", ("w",), "weights", "Give a weights file (.safetensors or .pt) for the model.", where, 0, reasons.busy),
        Action("device", ("v",), "device", "Choose the device that calibrates and trains.", where, 0, reasons.busy),
        Action("threshold", ("e",), "threshold", "Set the error that the quantized model may have.", where, 0, reasons.busy),
        Action("graph", ("m",), "graph", "Of a language model: show its modules, or every operation that torch.export sees.", where, 0, reasons.busy),
        Action("options", ("s",), "all options", "What else a run can be asked: targets, mean and std, limit, stem, epochs, size, classes …", where, 0, reasons.busy),
        Action("recipe", ("O",), "open recipe", "Start from a recipe file.", where, 0, reasons.busy),
        Action("baseline", ("t",), "train", "Train a baseline for this model on this data.", where, 0, reasons.busy),
        Action("resume", ("r",), "resume", "Go on with the stopped run under the cursor, or the latest one.", where, 4, reasons.cannot_resume),
        Action("rename_run", ("N",), "rename run", "Give the run under the cursor another name.", where, 0, reasons.busy),
        Action("delete_run", ("D",), "delete run", "Delete the run under the cursor with all its files; it is asked first.", where, 0, reasons.busy),
        Action("pane", ("tab",), "models/runs", "Change between the models and the runs.", where, 5),
        Action("next", ("n",), "load ▸", "Load the model, trace it and show its graph; on a run: open it.", where, 9, reasons.cannot_start),
    )  # fmt: skip


def _graph() -> tuple[Action, ...]:
    where = ("graph",)
    return (
        Action("mark", ("space",), "mark", "Fold this pair, or leave it for the conversion.", where, 2, reasons.fold_not_open),
        Action("mark_all", ("a",), "all", "Fold every pair.", where, 0, reasons.fold_not_open),
        Action("mark_none", ("x",), "none", "Fold nothing now: normalization is folded at conversion.", where, 0, reasons.fold_not_open),
        Action("fold", ("f",), "fold", "Fold the marked pairs and stay here to see the effect.", where, 3, reasons.fold_not_open),
        Action("compare", ("b",), "before/after", "The graph before and after folding, side by side.", where, 4, reasons.not_folded),
        Action("filter", ("slash",), "filter", "Show only the nodes that hold a text; Esc shows all.", where, 5),
        Action("detail", ("enter",), "details", "Everything about the node under the cursor.", where, 0),
        Action("next", ("n",), "strategy ▸", "Fold what is marked and go on to the strategy.", where, 9, reasons.no_graph),
    )  # fmt: skip


def _strategy() -> tuple[Action, ...]:
    where, edit = ("strategy",), reasons.no_plan
    return (
        Action("weights", ("w",), "weights", "Next number of weight bits: 8, 6, 4, 3, 2.", where, 2, edit, "edit"),
        Action("activations", ("a",), "activations", "Next number of activation bits: 8, 7, 6, 4, or none (weight-only); of a language model dynamic, static, or none.", where, 3, edit, "edit"),
        Action("granularity", ("c",), "channels/groups", "One scale per tensor, per channel, or per group of 32, 64 or 128 inputs.", where, 0, edit, "edit"),
        Action("rounding", ("m",), "rounding", "The next way to round weights: to nearest, with least squared error, HQQ, GPTQ …; of a language model AWQ too", where, 0, edit, "edit"),
        Action("observer", ("r",), "observer", "Next observer of activation ranges.", where, 0, edit, "edit"),
        Action("symmetric", ("s",), "symmetric", "Symmetric or affine activations; of a language model, weights.", where, 0, edit, "edit"),
        Action("keep", ("f",), "keep fp32", "Keep the layer in fp32, or quantize it again.", where, 4, edit, "edit"),
        Action("reset", ("z",), "as proposed", "Back to what was proposed for the layer.", where, 0, edit, "edit"),
        Action("pick_weights", ("W",), "all weight bits", "All widths and formats of the weights in a list: predicted size, what the layer becomes, kernel.", where, 0, edit, "edit"),
        Action("pick_activations", ("A",), "all activations", "All widths of the activations in a list.", where, 0, edit, "edit"),
        Action("pick_granularity", ("C",), "all scales", "All granularities of the scales in a list.", where, 0, edit, "edit"),
        Action("pick_rounding", ("R",), "all roundings", "All ways to round the weights in a list.", where, 0, edit, "edit"),
        Action("mark", ("space",), "mark", "Mark the layer, or all of a module: edits then change all marked layers.", where, 0, edit, "edit"),
        Action("alike", ("b",), "in all blocks", "Mark the layers of this name in all blocks: edits then change them together.", where, 0, edit, "edit"),
        Action("next_marked", ("apostrophe",), "next mark", "Go to the next marked layer.", where, 0, edit, "edit"),
        Action("mark_none", ("x",), "unmark", "Take away all marks.", where, 0, edit, "edit"),
        Action("undo", ("u",), "undo", "Take back the last edit.", where, 5, reasons.no_undo, "edit"),
        Action("redo", ("U", "ctrl+r"), "redo", "Do again what was taken back.", where, 0, reasons.no_redo, "edit"),
        Action("close", ("left", "h"), "close", "Close the module under the cursor, or go up to the one that the layer is in.", where, 0, edit),
        Action("expand", ("right", "l"), "open", "Open the module under the cursor.", where, 0, edit),
        Action("preset", ("p",), "preset", "Plan all layers anew from a preset.", where, 0, reasons.replan_not_open),
        Action("sensitivity", ("e",), "which layers hurt", "The layers by the harm that is estimated for each, and a cure for the worst.", where, 0, edit),
        Action("budget", ("P",), "budget", "Plans within a limit of size, bits, time or loss, on a chart: ← and → walk, ⏎ takes one.", where, 0, edit),
        Action("microscope", ("i",), "microscope", "The layer's weights before and after rounding, its channels, and what it reads.", where, 0, edit),
        Action("diff", ("d",), "diff", "What differs from the proposal.", where, 0, edit),
        Action("save", ("S",), "save recipe", "Write this strategy as a recipe file.", where, 0, edit),
        Action("open", ("O",), "open recipe", "Take the strategy of a recipe file.", where, 0, reasons.replan_not_open),
        Action("filter", ("slash",), "filter", "Show only the layers that hold a text; Esc shows all.", where, 0),
        Action("detail", ("enter",), "open/close", "Open or close a module; on a layer: everything about it.", where, 0),
        Action("next", ("n",), "calibrate ▸", "Calibrate and measure with this strategy; where that was done already, as a run of its own.", where, 9, reasons.cannot_calibrate),
    )  # fmt: skip


def _calibrate() -> tuple[Action, ...]:
    where = ("calibrate",)
    return (
        Action("view", ("v",), "ranges/layers", "Change between the ranges of the calibration and the measured layers.", where, 3, reasons.not_measured),
        Action("order", ("o",), "order", "Order the layers by harm, or as in the graph.", where, 5, reasons.not_measured),
        Action("depth", ("d",), "depth", "Show or hide the chart of the noise along the depth: each layer's own, and what has gathered.", where, 0, reasons.not_measured),
        Action("samples", ("w",), "words", "What fp32 and the quantized language model write after the same words, side by side.", where, 0, reasons.no_samples),
        Action("log_scale", ("y",), "log counts", "Counts of the histograms by their logarithm, or by their square root.", where, 0),
        Action("pause", ("p",), "pause", "Hold the work, or go on with it.", where, 0, reasons.not_running),
        Action("stop", ("s",), "stop", "Stop within a batch; the run can be resumed.", where, 4, reasons.nothing_to_stop),
        Action("edit", ("e",), "edit strategy", "Go back to the strategy; measuring again is a run of its own.", where, 0, reasons.no_plan),
        Action("train", ("t",), "train", "Train with quantization (QAT) from these ranges.", where, 2, reasons.train_not_open),
        Action("epochs", ("E",), "epochs", "Train for a number of epochs that you give.", where, 0, reasons.train_not_open),
        Action("next", ("n",), "report ▸", "Finish with what was measured.", where, 9, reasons.not_measured_yet),
    )  # fmt: skip


def _train() -> tuple[Action, ...]:
    where = ("train",)
    return (
        Action("stop", ("s",), "stop, keep best", "End training now; the best epoch so far is kept and measured.", where, 2, reasons.no_epoch),
        Action("pause", ("p",), "pause", "Hold the training, or go on with it.", where, 3, reasons.not_running),
        Action("halt", ("S",), "stop and save", "Stop within a batch and save; the run can be resumed later.", where, 4, reasons.not_running),
        Action("log_scale", ("y",), "log loss", "The loss on a logarithmic scale, or a linear one.", where, 0),
        Action("next", ("n",), "report ▸", "Go on to the report.", where, 9, reasons.no_report),
    )  # fmt: skip


def _report() -> tuple[Action, ...]:
    where = ("report",)
    return (
        Action("detail", ("enter",), "details", "Everything about the layer, or the runtime, under the cursor.", where, 0),
        Action("export", ("x",), "export", "Write the model for other runtimes, read each file back, compare and time it.", where, 2, reasons.cannot_export),
        Action("stop", ("s",), "stop export", "Stop the export within a batch; files that are finished stay.", where, 0, reasons.no_export),
        Action("view", ("v",), "runtimes", "Change between the layers and the latency per runtime.", where, 3, reasons.no_report),
        Action("samples", ("w",), "words", "What fp32 and the quantized language model write after the same words, side by side.", where, 0, reasons.no_samples),
        Action("changed", ("i",), "changed items", "The items that the quantized model answers otherwise than fp32, those that lost most first.", where, 0, reasons.no_changes),
        Action("microscope", ("I",), "microscope", "The layer's weights before and after rounding, its channels, and what it reads.", where, 0, reasons.no_plan),
        Action("files", ("f",), "files", "The run's files and exports.", where, 0, reasons.no_report),
        Action("compare", ("c",), "compare", "This run among the others, on a chart.", where, 5),
        Action("order", ("o",), "order", "Order the layers by harm, or as in the graph.", where, 0),
        Action("depth", ("d",), "depth", "Show or hide the chart of the noise along the depth: each layer's own, and what has gathered.", where, 0),
        Action("copy", ("y",), "copy", "Copy the summary to the clipboard, and write it to a file.", where, 0, reasons.no_report),
        Action("edit", ("e",), "edit strategy", "Take this run's strategy and change it: measuring again is a run of its own.", where, 4, reasons.no_plan),
        Action("again", ("t",), "train", "Run again with training, from the same recipe.", where, 0, reasons.cannot_train_again),
        Action("next", ("n", "m"), "models ▸", "Choose another model, or open another run.", where, 9),
    )  # fmt: skip


def _compare() -> tuple[Action, ...]:
    where = ("compare",)
    return (
        Action("axis", ("x",), "size/latency", "Compare by size, or by latency: of one image or a batch of 64, of a token or a prompt.", where, 3),
        Action("all", ("a",), "all runs", "Runs of all models and data, or of this model on this data alone.", where, 4),
        Action("mark", ("space",), "mark", "Mark the run, one of two to be put side by side.", where),
        Action("pair", ("equals_sign",), "side by side", "Two runs side by side, layer by layer: those marked, or this run and the one under the cursor.", where, 2),
        Action("back", ("escape", "c"), "back", "Go back to the report.", where, 5),
        Action("open", ("enter", "n"), "open ▸", "Open the run under the cursor: its report takes the place of this one.", where, 9, reasons.busy),
    )  # fmt: skip


def _sensitivity() -> tuple[Action, ...]:
    where = ("sensitivity",)
    return (
        Action("more", ("plus", "right"), "line down", "Draw the line one layer further down: one more gets the cure.", where, 2),
        Action("fewer", ("minus", "left"), "line up", "Draw the line one layer further up.", where, 3),
        Action("cut_here", ("space",), "line here", "Draw the line under the layer that the cursor is on.", where),
        Action("cure", ("c",), "8 bits/fp32", "The cure of the layers above the line: 8 bits, or fp32.", where, 4),
        Action("measure", ("m",), "measure", "Measure the metric on validation with the layer under the cursor alone on integers.", where),
        Action("back", ("escape", "e"), "back", "Go back to the strategy.", where, 5),
        Action("take", ("enter", "n"), "make it the plan ▸", "Take the plan with the cure: back on the strategy u undoes it, n goes on.", where, 9),
    )  # fmt: skip


def _microscope() -> tuple[Action, ...]:
    where = ("microscope",)
    return (
        Action("earlier", ("left", "up", "k"), "layer before", "The layer before this one.", where, 3),
        Action("later", ("right", "down", "j"), "next layer", "The layer after this one.", where, 4),
        Action("back", ("escape", "i", "I"), "back", "Go back.", where, 9),
    )


_TABLE: tuple[Action, ...] = (
    *_models(),
    *_graph(),
    *_strategy(),
    *_calibrate(),
    *_train(),
    *_report(),
    *_compare(),
    *_sensitivity(),
    *_microscope(),
)
# The screens that lie over a stage's own, by their titles.
OVER: dict[str, str] = {"sensitivity": "Sensitivity", "compare": "Compare", "microscope": "Microscope"}


OF_STAGE: dict[str, str] = {"sensitivity": "strategy", "compare": "report", "microscope": "strategy"}
"""The stages that they lie over."""


def own(where: str) -> tuple[Action, ...]:
    """The actions of one screen: of this table, or those that stand in the screen's own file."""
    return tuple(action for action in _TABLE if where in action.where) or screen_class(where).ACTIONS


def of(where: str) -> tuple[Action, ...]:
    """The actions of a screen, its own first."""
    return (*own(where), *everywhere())


def every() -> tuple[Action, ...]:
    """The actions of all screens, those of the whole app last."""
    return (
        *(action for stage in registry() for action in own(stage.id)),
        *(action for where in OVER for action in own(where)),
        *everywhere(),
    )


def footer(where: str) -> tuple[Action, ...]:
    """At most six, in the order of the footer."""
    return tuple(sorted((a for a in of(where) if a.footer), key=lambda a: a.footer))[:6]


_SHOWN = {
    "apostrophe": "'", "full_stop": ".", "comma": ",", "plus": "+", "minus": "-", "greater_than_sign": ">", "equals_sign": "=", "question_mark": "?", "slash": "/", "enter": "⏎", "left_square_bracket": "[", "escape": "esc", "ctrl+c": "^c", "ctrl+l": "^l", "ctrl+p": "^p", "ctrl+q": "^q", "ctrl+r": "^r", "f1": "F1", "left": "←", "right": "→",
}  # fmt: skip


def key_text(key: str) -> str:
    """A key as a person knows it."""
    return _SHOWN.get(key, key)


def markdown(titles: Sequence[tuple[str, str]]) -> str:
    """The table of keys of qtui/README.md; ``titles`` are (screen, title)."""
    lines = ["| screen | key | does |", "|---|---|---|"]
    for where, title in (*titles, ("*", "everywhere")):
        for action in everywhere() if where == "*" else own(where):
            keys = " ".join(f"`{key_text(key)}`" for key in action.keys)
            lines.append(f"| {title} | {keys} | {action.help} |")
    return "\n".join(lines) + "\n"
