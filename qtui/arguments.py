"""The command line's grammar: one parser, with one-line errors that suggest the nearest word."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from engine.export.registry import choices
from engine.plain_text import one_line
from engine.tasks.registry import task_of

PRESETS = (
    "default", "w8a8", "w8a8-static", "w4a8", "w4a4", "w8", "w4", "w3", "fp8", "fp8-dynamic", "fp8-static", "fp8-block", "mxfp4", "nvfp4",
    "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k", "tensorrt",
)  # fmt: skip
REPAIRS = ("bias_correction", "bn_reestimation", "equalize")
DEVICES = ("auto", "cpu", "cuda")
QAT_MODES = ("auto", "always", "never")
STEMS = ("auto", "small", "imagenet")
_MODEL = "a name, package.module:factory, path/file.py:factory, or a language model's folder, .gguf file or OWNER/MODEL"
_TASK = "what is measured: a name of `qtui tasks`, or your own as path/task.py:factory (default: what belongs to the model)"
_DATA = (
    "a data set, or a folder of images by class; for a language model a text's name, a text file or a folder of text; for the task "
    "segmentation a folder with images/ and masks/, for multilabel and regression a CSV file; "
    "for fidelity any inputs without labels: a file of arrays, a folder of images, arrays or audio, or random:3x224x224"
)
_THRESHOLD = "drop:0.005 (of accuracy; of a language model the part by which perplexity rises), mse:1e-7, sqnr:30 or agreement:0.99"
_STREAM = "read a language model block by block (default: where it would not fit in memory)"
_TARGET = (
    "search a plan that comes to this, the cheapest remedy first: drop:0.003, size:0.2 (of fp32's file) or size:1.5MB, bpw:4.5 (bits per "
    "weight), latency:0.5 (of fp32's time) or latency:3ms; may be given several times"
)
_CACHE = (
    "of a language model: keep keys and values in int8, fp8 or int4; fp8:per-tensor has one scale a layer, int4:per-group:64 groups of 64 "
    "channels (default: floats)"
)
_FORMATS = choices()
_STEM = "first layers of a torchvision model: for small images, or as published (default: those of the weights)"
_TRAINED_STEM = "first layers of a torchvision model (default: by the size of the images; as published for digits)"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and a hint, and which knows its options and commands by name."""

    def __init__(self, prog: str | None = None, description: str | None = None, **kwargs: Any) -> None:
        self.flags: list[str] = []
        self.commands: dict[str, Parser] = {}
        super().__init__(prog, description=description, allow_abbrev=False, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        self.flags += [name for name in args if name.startswith("-")]
        return super().add_argument(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {one_line(message)}\nsee {self.prog} --help\n")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse; a misspelt command or option is named before argparse complains about what follows from it."""
        self._check(argv)
        args = self.parse_args(argv)
        if args.command == "run" and not (args.model or args.recipe):
            self.commands["run"].error("no model: name one, such as simplecnn, or give --recipe FILE")
        if args.command == "train" and args.data is None and task_of(args.model, args.task).name == "classification":
            self.commands["train"].error("the following arguments are required: --data")
        return args

    def _check(self, argv: Sequence[str]) -> None:
        parser = self
        for word in argv:
            if word == "--":
                return
            if _is_option(word):
                name = word.partition("=")[0]
                if name not in parser.flags:
                    parser.error(f"unknown option {name}{_suggest(name, parser.flags)}")
            elif parser.commands:
                if word not in parser.commands:
                    parser.error(f"unknown command {word!r}{_suggest(word, list(parser.commands))}")
                parser = parser.commands[word]


def _is_option(word: str) -> bool:
    return len(word) > 1 and word[0] == "-" and (word[1] == "-" or word[1].isalpha())


def _suggest(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else ""


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="qtui", description="Quantize a trained PyTorch model on real integer kernels and measure the result.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def command(name: str, text: str) -> Parser:
        made: Parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        parser.commands[name] = made
        return made

    _run(command("run", "quantize a model, step by step"))
    _train(command("train", "train a baseline where no weights exist"))
    models = command("models", "list the models")
    models.add_argument("--filter", metavar="GLOB", help="only the names that match, such as 'resnet*'")
    listings = [
        models,
        command("data", "list the data sets"),
        command("tasks", "list the tasks: what can be measured of a model"),
        command("doctor", "tell what this machine can run"),
        command("runs", "list the runs, newest first"),
    ]
    listings[-1].add_argument("folder", metavar="DIR", nargs="?", help="the folder that holds them (default: ./runs)")
    for listing in listings:
        listing.add_argument("--json", action="store_true", help="JSON instead of a table")
    new = command("new", "write a file with a model and a task of your own to begin with")
    new.add_argument("file", metavar="FILE", help="the file to write, such as task.py; it must not exist")
    show = command("show", "show the report of a run")
    show.add_argument("run", metavar="RUN", help="a folder, or the beginning of a run's name")
    show.add_argument("--json", action="store_true", help="the report as JSON")
    export = command("export", "write a finished run's model for other runtimes, checked")
    export.add_argument("run", metavar="RUN", help="a folder, or the beginning of a run's name")
    export.add_argument("--to", metavar="LIST", type=_names, required=True, help=_FORMATS)
    export.add_argument("--force", action="store_true", help="write files again that are there already")
    export.add_argument("--json", action="store_true", help="the report on stdout, everything else on stderr")
    compare = command("compare", "tell what a quantized language model costs against its original")
    compare.add_argument("original", metavar="ORIGINAL", help="a language model's name, folder, OWNER/MODEL or .gguf file")
    compare.add_argument("other", metavar="MODEL", help="the model to judge, likewise")
    compare.add_argument("--data", metavar="NAME|PATH", default="python-docs", help="a text's name, a text file or a folder of text")
    compare.add_argument("--limit", metavar="N", type=_positive, help="tokens of the test split (default: all)")
    compare.add_argument("--json", action="store_true", help="the figures as JSON, everything else on stderr")
    resume = command("resume", "go on with a run that was stopped")
    resume.add_argument("run", metavar="RUN", help="a folder, or the beginning of a run's name")
    _answers(resume)
    return parser


def _run(run: Parser) -> None:
    run.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help=_MODEL,
    )
    run.add_argument("--task", metavar="NAME|FILE:FACTORY", help=_TASK)
    run.add_argument("--data", metavar="NAME|PATH", help=_DATA)
    run.add_argument("--weights", metavar="FILE", help="trained weights: safetensors, or a PyTorch state_dict")
    run.add_argument("--recipe", metavar="FILE", help="a YAML recipe; options given here win over it")
    run.add_argument("--stem", choices=STEMS, help=_STEM)
    run.add_argument("--device", choices=DEVICES)
    run.add_argument("--out", metavar="DIR", help="where the run is written (default: a new folder in ./runs)")
    run.add_argument(
        "--threshold",
        metavar="METRIC:VALUE",
        help=_THRESHOLD,
    )
    run.add_argument("--target", metavar="KIND:VALUE", action="append", help=_TARGET)
    run.add_argument("--preset", choices=PRESETS)
    run.add_argument("--repair", metavar="LIST", type=_repairs, help=f"of a network, undone where it does not help: {', '.join(REPAIRS)}")
    run.add_argument("--rotation", choices=("hadamard",), help="of a language model: turn its weights before they are rounded")
    run.add_argument("--cache", metavar="FORMAT", help=_CACHE)
    run.add_argument("--mean", metavar="R,G,B", type=_three, help="normalization of pixels in 0..1")
    run.add_argument("--std", metavar="R,G,B", type=_three)
    run.add_argument("--size", metavar="N", type=_integer, help="scale the shorter side of a folder's images to N pixels")
    run.add_argument("--crop", metavar="N", type=_integer, help="keep the middle N×N pixels of them (default: --size)")
    run.add_argument("--interpolation", choices=("bilinear", "bicubic"), help="how they are scaled (default: bilinear, or the model's)")
    run.add_argument("--classes", metavar="FILE", help="names of all classes, one a line, in the order of the model's outputs")
    run.add_argument("--rate", metavar="HZ", type=_integer, help="resample audio to HZ samples a second")
    run.add_argument("--calibration-from", metavar="DIR", help="images without labels that calibrate; --data still measures")
    run.add_argument("--quantize-first", action="store_true", default=None, help="fold BatchNorm while training, not before")
    run.add_argument("--qat", choices=QAT_MODES, help="quantization-aware training (default: where PTQ misses the threshold)")
    run.add_argument("--epochs", metavar="N", type=_integer, help="epochs of QAT")
    run.add_argument("--graph", choices=("modules", "export"), help="of a language model: its modules, or the operations of torch.export")
    run.add_argument("--stream", action=argparse.BooleanOptionalAction, help=_STREAM)
    run.add_argument("--export", metavar="LIST", type=_names, help=_FORMATS)
    run.add_argument("--limit", metavar="N", type=_integer, help="use no more than N images, or tokens of the test split")
    run.add_argument("--seed", metavar="N", type=_integer)
    run.add_argument("--against", metavar="ORIGINAL", help="judge a quantized language model against its original, as qtui compare does")
    run.add_argument("--dry-run", action="store_true", help="load and plan, tell what the run would take, and end")
    _answers(run)


def _train(train: Parser) -> None:
    train.add_argument("model", metavar="MODEL", help="the name of a model")
    train.add_argument("--task", metavar="NAME", help="what is learned: a name of `qtui tasks` (default: what belongs to the model)")
    train.add_argument("--data", metavar="NAME|PATH", help="a data set, or your own files; models of other tasks bring theirs")
    train.add_argument("--out", metavar="FILE", help="where the weights are written (default: the cache, where a run finds them)")
    train.add_argument("--epochs", metavar="N", type=_positive)
    train.add_argument("--seed", metavar="N", type=_integer, default=0)
    train.add_argument("--stem", choices=STEMS, default="auto", help=_TRAINED_STEM)
    train.add_argument("--device", choices=DEVICES, default="auto")


def _answers(parser: Parser) -> None:
    parser.add_argument("--yes", action="store_true", help="answer every question with yes")
    parser.add_argument("--json", action="store_true", help="the report on stdout, everything else on stderr")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _positive(text: str) -> int:
    number = _integer(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _three(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers such as 0.49,0.48,0.45")
    return values


def _repairs(text: str) -> tuple[str, ...]:
    names = _names(text)
    wrong = next((name for name in names if name not in REPAIRS), None)
    if wrong is not None:
        raise argparse.ArgumentTypeError(f"{wrong!r} is none of {', '.join(REPAIRS)}{_suggest(wrong, REPAIRS)}")
    return names


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
