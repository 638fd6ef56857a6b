"""The stages, a line each: the registry that the stage bar, the digits, the footer, the palette, the help and the reducer derive from.

A further screen is a file with its ``StageScreen``, the events that it shows, and a line here.
"""

from __future__ import annotations

from qtui import reasons
from qtui.stage_table import StageDef

REGISTRY: tuple[StageDef, ...] = (
    StageDef(
        "model", "Model", "qtui.screens.models:ModelsScreen", ("load",), (),
        "Choose a model, its data and weights; or reopen and resume what was done before.",
        reasons.never, "the models and runs",
    ),
    StageDef(
        "graph", "Graph", "qtui.screens.graph:GraphScreen", ("trace", "analyze", "fuse"), ("trace", "analyze", "optimize"),
        "What the model computes, node by node. A convolution and the normalization behind it can become one layer.",
        reasons.no_graph,
    ),
    StageDef(
        "strategy", "Strategy", "qtui.screens.strategy:StrategyScreen", ("plan", "sensitivity", "inspect"), ("quantize",),
        "What each layer is to become: bits of weights and activations, scales, observer; and why that is proposed.",
        reasons.no_plan,
    ),
    StageDef(
        "calibrate", "Calibrate", "qtui.screens.calibrate:CalibrateScreen", ("calibrate", "convert", "evaluate"), ("qat",),
        "Training images show which ranges values take; then the quantized model is measured on its real kernels.",
        reasons.no_calibration, "the calibration and its result",
    ),
    StageDef(
        "train", "Train", "qtui.screens.train:TrainScreen", ("qat",), (),
        "Training with quantization in the loop (QAT). The epoch that is best on validation images is kept.",
        reasons.no_training, "the training", form="qat",
    ),
    StageDef(
        "report", "Report", "qtui.screens.report:ReportScreen", ("export",), (),
        "What was measured, layer by layer, what was exported, and how this run compares with the others.",
        reasons.no_report,
    ),
)  # fmt: skip
