"""What the figures of the tables mean, each in two sentences. Pure data: by the key of a column, of one screen alone where it differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qtui.drawing.rows import Column

_EVERYWHERE: Mapping[str, str] = {
    "layer": "The layer by its path in the model. A path is cut at its components where there is no room, never at its end.",
    "weights": "Bits of the weights and their scales: w4 g32 is four bits with a scale for every 32 inputs. Without a word more "
    "each output channel has its own scale, and weights are rounded to nearest.",
    "activations": "Bits of what the layer reads: a8 is eight bits on a grid from calibration. An arrow says what the machine makes of it: "
    "a8→7 where sums of eight bits overflow.",
    "observer": "How calibration turns the values it has seen into a range. min-max keeps all of them, the others cut rare ones off for a "
    "finer step.",
    "params": "How many numbers the layer holds, or its part of all. What is large decides the size of the file.",
    "time": "The layer's part of the time of the fp32 model on one item, measured here. What takes little cannot make much faster.",
    "sqnr": "Signal to quantization noise at the layer's output, in decibels, with all layers before it quantized. 20 dB are noise of a "
    "tenth of the signal; 6 dB less is twice the noise.",
    "own": "The noise that this layer adds alone, given what it reads. Where it is far above the other figure the noise came from before.",
    "alone": "The layer timed alone on integers against fp32, on this machine. What is slower there gains size only; "
    "~ marks times taken while the machine had other work.",
    "kernel": "What computes the layer: an integer kernel, or fp32 where there is none that pays or fits. Simulated is fp32 arithmetic "
    "that rounds as integers would.",
    "size": "Bytes as a file, or by how much a choice changes them. Scales and zero points are counted.",
    "noise": "The estimated SQNR of the layer's output with its weights so. It is told before anything is run.",
    "share": "The layer's part of the estimated harm of all. Curing the first of the list helps most.",
    "drop": "What the metric lost on validation with this layer alone on integers. It was measured, not estimated.",
    "value": "The metric that decides, on the test split. Its 95 % interval stands behind ±.",
    "error": "The mean squared difference from fp32's outputs, or for text the divergence of distributions in nats. Zero is the same.",
    "agreement": "The part of the items that are answered as fp32 answers them. It sees changes that the metric cannot, good and bad.",
    "single": "Milliseconds for one item: the median of interleaved repeats. ~ marks times that were not steady.",
    "batched": "Milliseconds for a batch: the median of interleaved repeats. ~ marks times that were not steady.",
    "faster": "fp32's median over this one's, measured in turns on this machine. There is none where times were not steady.",
    "settled": "After how many items the range moved by less than 1 %. A range that still moves wants more calibration items.",
    "low": "The least value that calibration saw. The grid reaches at least from here or is clipped.",
    "high": "The greatest value that calibration saw. One rare value here makes the step coarse for all.",
    "clip": "Where the grid ends. Values beyond are set to its end, so that all others get a finer step.",
    "over": "The part of the values beyond the ends of the grid. A little is wanted, much is lost.",
    "outliers": "Channels whose largest value is many times that of the median channel. They hold the range wide for all others.",
    "cure": "What the layer becomes with the cure. A blank keeps it as it is.",
    "as": "What the layer becomes under the plan. Weights come first, what it reads behind the dot.",
    "asked": "What the recipe or an edit asks for. Beside it stands what this machine has.",
    "actual": "What the layer runs as here. It differs from what was asked where no kernel computes that.",
    "values": "The metric of fp32, and of the model that was chosen. Both are of the test split.",
    "what": "What came of the run in few words. The sentence below has all of them.",
}  # fmt: skip
_OF_SCREEN: Mapping[tuple[str, str], str] = {
    ("sensitivity", "weights"): "The estimated SQNR of the layer's output with its weights rounded as planned, in decibels. Under 20 dB "
    "the noise is more than a tenth of the signal.",
    ("sensitivity", "activations"): "The estimated SQNR of the layer's output with what it reads rounded as planned, in dB. Under 20 dB "
    "the noise is more than a tenth of the signal.",
    ("strategy", "noise"): "The estimated SQNR of the layer's output as planned, and behind the arrow with the next fewer bits for its "
    "weights, in decibels. It is told before anything is run; under 20 dB the noise is more than a tenth of the signal.",
    ("side-by-side", "sqnr"): "SQNR of the second run less that of the first. Above zero the second has less noise there.",
    ("graph", "time"): "The node's part of the time of one item, measured here. Nodes that only move data can take much of it too.",
}  # fmt: skip


def explained(columns: Iterable[Column], screen: str, first: str | None = None) -> tuple[tuple[str, str], ...]:
    """(title, sentences) of the columns that are a figure; that of the key ``first`` before the others."""
    found = []
    for column in columns:
        said = _OF_SCREEN.get((screen, column.key)) or _EVERYWHERE.get(column.key.removesuffix("64").removesuffix("95"))
        if said and column.title.strip():
            found.append((column.key, column.title.strip(" ▾▴"), said))
    found.sort(key=lambda one: one[0] != first)
    return tuple((title, said) for _, title, said in found)
