"""Models of many families from trace to verdict and ONNX, with random weights on random inputs.

    uv run python tests/bench/model_matrix.py [GLOB …] [--seconds LIMIT] [--json FILE] [--write FILE]

Each model runs in a child process under a time limit, through ``engine.quantize(model=…, task=…)``. One line a model: the lowering
that took it, its islands, the part of its multiply-adds on integers, the SQNR of its outputs, ONNX (compared with what was measured)
or why not, seconds, and the error where there is one. At the end the tracebacks and the median of the part on integers. With
``--json`` what came to a verdict is not run again. Exit code 1 where a model ends in a traceback. Networks of random weights amplify
noise: a trained one keeps more. What a detection model of random weights finds is decided by differences smaller than any noise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tables import put

MARKS = ("<!-- bench:models -->", "<!-- /bench:models -->")
BATCHES, BATCH = 10, 1
# What every child would import by itself, for seconds each time.
PRELOADED = ["torchvision", "timm", "transformers", "torch._dynamo", "torch.export", "torch.utils.flop_counter", "onnx", "engine.api"]
TIMM = {
    "resnet10t": 64, "resnetv2_50x1_bit": 64, "seresnext26d_32x4d": 64, "res2net50_14w_8s": 64, "regnety_002": 64, "regnetx_002": 64,
    "efficientnet_b0": 64, "tf_efficientnetv2_b0": 64, "mobilenetv3_small_050": 64, "mobilenetv4_conv_small": 64, "mnasnet_small": 64,
    "ghostnet_100": 64, "rexnet_100": 64, "repvgg_a0": 64, "mobileone_s0": 64, "convnext_atto": 64, "convnextv2_atto": 64,
    "edgenext_xx_small": 64, "levit_128s": 224, "vit_tiny_patch16_224": 96, "deit_tiny_patch16_224": 96,
    "swin_tiny_patch4_window7_224": 224, "xcit_nano_12_p16_224": 96, "coatnet_nano_rw_224": 224, "pit_ti_224": 224, "poolformer_s12": 64,
    "pvt_v2_b0": 64, "mobilevit_xxs": 64, "mixer_s32_224": 96, "gmlp_ti16_224": 96, "resmlp_12_224": 96, "hrnet_w18_small": 64,
    "densenet121": 64, "cspresnet50": 64, "ese_vovnet19b_dw": 64, "eca_nfnet_l0": 64, "fastvit_t8": 64, "repvit_m0_9": 64,
}  # fmt: skip
SEGMENTATION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
DETECTION = (
    "fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn", "fcos_resnet50_fpn", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large",
)  # fmt: skip
VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d")
ENCODERS = (
    "bert", "roberta", "distilbert", "deberta", "modernbert", "albert", "electra", "vit", "dinov2", "clip", "wav2vec2", "whisper", "t5",
    "bart",
)  # fmt: skip

Given = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """``model`` makes it; ``inputs`` draws the arguments of one batch."""

    model: Callable[[], Any]
    inputs: Callable[[], Given]


def cases() -> dict[str, Case]:
    found = {f"timm/{name}": _timm(name, side) for name, side in TIMM.items()}
    found |= {f"segmentation/{name}": _segmentation(name) for name in SEGMENTATION}
    found |= {f"detection/{name}": _detection(name) for name in DETECTION}
    found |= {f"video/{name}": _video(name) for name in VIDEO}
    found |= {f"transformers/{name}": _transformers(name) for name in ENCODERS}
    return found


def _images(side: int, frames: int | None = None) -> Any:
    """Smooth images with some noise, (N, 3, side, side), or videos (N, 3, frames, side, side)."""
    import torch

    count = BATCH * (frames or 1)
    smooth = torch.nn.functional.interpolate(torch.randn(count, 3, 5, 5), (side, side), mode="bicubic")
    x = smooth + 0.2 * torch.randn(count, 3, side, side)
    return x if frames is None else x.view(BATCH, frames, 3, side, side).transpose(1, 2).contiguous()


def _timm(name: str, side: int) -> Case:
    def model() -> Any:
        import timm

        # Transformers know their size; convolutional networks take any, and not the word.
        for options in ({"img_size": side}, {}):
            with contextlib.suppress(TypeError):
                return timm.create_model(name, pretrained=False, num_classes=10, **options)
        raise TypeError(f"timm makes no {name}")

    return Case(model, lambda: ((_images(side),), {}))


def _segmentation(name: str) -> Case:
    def model() -> Any:
        from torchvision.models import segmentation

        return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5)

    return Case(model, lambda: ((_images(96),), {}))


def _detection(name: str) -> Case:
    # A keypoint head of eight wide convolutions takes each box alone.
    boxes = 2 if "keypoint" in name else 10
    few = {"box_score_thresh": 0.0, "rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 30, "box_detections_per_img": boxes}
    single = {"score_thresh": 0.0, "detections_per_img": 10, "topk_candidates": 50}
    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": 2 if "keypoint" in name else 5}
    options |= few if "rcnn" in name else single
    options |= {} if "ssd" in name else {"min_size": 96, "max_size": 160}

    def model() -> Any:
        from torchvision.models import detection

        return getattr(detection, name)(**options)

    def inputs() -> Given:
        import torch

        return ([torch.sigmoid(x)[:, :, :80] for x in _images(96)],), {}

    return Case(model, inputs)


def _video(name: str) -> Case:
    def model() -> Any:
        from torchvision.models import video

        return getattr(video, name)(weights=None, num_classes=10)

    return Case(model, lambda: ((_images(224, 16) if name == "s3d" else _images(64, 4),), {}))


_TEXT = {"vocab_size": 120, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_MODEL = {"vocab_size": 120, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
          "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "pad_token_id": 0, "bos_token_id": 1,
          "eos_token_id": 2, "decoder_start_token_id": 1}  # fmt: skip


def _transformers(name: str) -> Case:
    def model() -> Any:
        import transformers as t

        pictures = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "image_size": 32,
                    "patch_size": 8}  # fmt: skip
        made: dict[str, Callable[[], Any]] = {
            "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**_TEXT, num_labels=10)),
            "roberta": lambda: t.RobertaForSequenceClassification(t.RobertaConfig(**_TEXT, num_labels=10, max_position_embeddings=64)),
            "distilbert": lambda: t.DistilBertForSequenceClassification(
                t.DistilBertConfig(vocab_size=120, dim=64, n_layers=2, n_heads=4, hidden_dim=128, num_labels=10)
            ),
            "deberta": lambda: t.DebertaV2ForSequenceClassification(
                t.DebertaV2Config(**_TEXT, num_labels=10, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16)
            ),
            "modernbert": lambda: t.ModernBertForSequenceClassification(t.ModernBertConfig(**_TEXT, num_labels=10, pad_token_id=0)),
            "albert": lambda: t.AlbertForSequenceClassification(t.AlbertConfig(**_TEXT, embedding_size=32, num_labels=10)),
            "electra": lambda: t.ElectraForSequenceClassification(t.ElectraConfig(**_TEXT, embedding_size=32, num_labels=10)),
            "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**pictures, num_labels=10)),
            "dinov2": lambda: t.Dinov2ForImageClassification(
                t.Dinov2Config(**{k: v for k, v in pictures.items() if k != "intermediate_size"}, num_labels=10)
            ),
            "clip": lambda: t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(**pictures, projection_dim=16)),
            "wav2vec2": lambda: t.Wav2Vec2ForSequenceClassification(
                t.Wav2Vec2Config(
                    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, conv_dim=(32, 32, 32),
                    conv_stride=(5, 4, 4), conv_kernel=(10, 8, 4), num_feat_extract_layers=3, num_conv_pos_embeddings=16,
                    num_conv_pos_embedding_groups=4, num_labels=10, classifier_proj_size=32,
                )
            ),
            "whisper": lambda: t.WhisperForConditionalGeneration(t.WhisperConfig(**_MODEL, max_source_positions=50, num_mel_bins=16)),
            "t5": lambda: t.T5ForConditionalGeneration(
                t.T5Config(vocab_size=120, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0)
            ),
            "bart": lambda: t.BartForConditionalGeneration(t.BartConfig(**_MODEL, max_position_embeddings=64)),
        }  # fmt: skip
        return made[name]()

    def inputs() -> Given:
        import torch

        ids = torch.randint(4, 120, (BATCH, 24))
        if name in ("vit", "dinov2", "clip"):
            return (), {"pixel_values": _images(32)}
        if name == "wav2vec2":
            return (), {"input_values": torch.randn(BATCH, 4000)}
        if name == "whisper":
            return (), {"input_features": torch.randn(BATCH, 16, 100), "decoder_input_ids": ids[:, :8]}
        if name in ("t5", "bart"):
            return (), {"input_ids": ids, "decoder_input_ids": ids[:, :8], "use_cache": False}
        return (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return Case(model, inputs)


def first(raw: Any) -> Any:
    """What two models' outputs are compared by: the first tensor of numbers, or each image's scores."""
    import torch
    from torch.utils._pytree import tree_leaves

    from engine.tasks.outputs import normalized

    if isinstance(raw, list) and raw and isinstance(raw[0], dict):
        return [{"scores": one["scores"].detach()} for one in raw]
    return next(x for x in tree_leaves(normalized(raw)) if isinstance(x, torch.Tensor) and x.is_floating_point()).detach()


def cosine(outputs: Any, targets: Any) -> float:
    """Of the outputs and fp32's, over the whole split."""
    import torch

    found, wanted = first(outputs), targets
    if isinstance(found, list):
        pairs = [(a["scores"], b["scores"]) for a, b in zip(found, wanted, strict=True)]
        found = torch.cat([a[: min(len(a), len(b))] for a, b in pairs])
        wanted = torch.cat([b[: min(len(a), len(b))] for a, b in pairs])
    return float(torch.nn.functional.cosine_similarity(found.flatten().double(), wanted.flatten().double(), dim=0))


def settle(model: Any, batches: list[Given]) -> None:
    """Statistics of the batches for batch normalizations: those that weights come with make no network of random weights sensible.
    A linear layer of zeros, as some heads begin, gets numbers: nothing else shows in what it gives. So does a class token, which begins
    so near to 0 that no step of the other tokens holds it."""
    import torch

    for name, parameter in model.named_parameters():
        if name.endswith("cls_token"):
            torch.nn.init.normal_(parameter)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.05)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    several = batches
    if all(isinstance(x, torch.Tensor) for args, kwargs in batches for x in (*args, *kwargs.values())):
        # A norm over a single place of a single item has no variance.
        args = tuple(torch.cat(column) for column in zip(*(args for args, _ in batches), strict=True))
        several = [(args, {key: torch.cat([kwargs[key] for _, kwargs in batches]) for key in batches[0][1]})]
    with torch.no_grad(), contextlib.suppress(Exception):
        for args, kwargs in several:
            model(*args, **kwargs)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


def row(name: str, place: str) -> dict[str, Any]:
    """One run's figures; ``error`` is empty where it came to its verdict."""
    import torch

    import engine
    from engine.api import quantize
    from engine.errors import EngineError, UsageError
    from engine.tasks.base import Batch

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    start = time.perf_counter()
    found: dict[str, Any] = {"name": name, "error": "", "traceback": False}
    try:
        case = cases()[name]
        model = case.model().eval()
        given = [case.inputs() for _ in range(BATCHES)]
        settle(model, given)
        with torch.no_grad():
            batches = [Batch(args, kwargs, first(model(*args, **kwargs)), BATCH) for args, kwargs in given]
        task = engine.Task.of(batches[:6], batches[6:8], batches[8:], metric=cosine, higher_is_better=True)
        report = quantize(
            model=model, task=task, out=Path(place), preset="w8a8", threshold="sqnr:15", export=("onnx",), qat={"mode": "never"}
        ).data
        covered = report["coverage"]
        onnx = next(entry for entry in report["exports"] if entry["format"] == "onnx")
        found |= {
            "lowering": report["lowering"], "islands": len(covered.get("islands", ())), "macs": covered["macs_total"],
            "share": covered["macs_integer"] / max(covered["macs_total"], 1), "sqnr_db": report["ptq"]["error"]["sqnr_db"],
            "cosine": report["ptq"]["value"], "onnx": _onnx(onnx), "why": report["graph"].get("root", ""), "rest": covered["rest"][:4],
            "whole": [f"{leaf['path']}: {leaf['reason']}" for leaf in report["graph"]["untraced"]][:3],
        }  # fmt: skip
    except (EngineError, UsageError) as error:
        found |= {"error": str(error)[:300], "traceback": "traceback" in str(error)}
    except Exception as error:
        found |= {"error": f"{type(error).__name__}: {str(error)[:300]}", "traceback": True}
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def _onnx(entry: dict[str, Any]) -> str:
    if not entry["path"] or not entry["verified"]:
        return str(entry.get("reason", ""))[:200]
    if layers := entry.get("layers_alone"):
        return (
            f"ok layer by layer ({layers['compared']} values, {layers['rms_steps']:.2f} steps), outputs {entry['parity']['sqnr_db']:.1f} dB"
        )
    return "ok" if not entry.get("differs") else f"differs: {(entry['parity'] or {}).get('sqnr_db')} dB"


def line(found: dict[str, Any]) -> str:
    start = f"{found['name']:<48} {found['seconds']:>6} s  "
    if found["error"]:
        return f"{start}{found['error']}"
    islands = f"{found['islands']} islands" if found["lowering"] == "islands" else "graph"
    sqnr = "exact" if found["sqnr_db"] is None else f"{found['sqnr_db']:.1f} dB"
    rest = ", ".join(f"{one['operation']} {100 * one['macs'] / max(found['macs'], 1):.1f} %" for one in found["rest"])
    return f"{start}{islands:<12} {100 * found['share']:5.1f} % of MACs, {sqnr:>8}, ONNX {found['onnx']}; in fp32: {rest or 'none'}"


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| model | lowering | MACs on integers | SQNR | ONNX | seconds |", "|---|---|---|---|---|---|"]
    for found in rows:
        if found["error"]:
            lines.append(f"| {found['name']} | refused: {found['error'][:90]} | | | | {found['seconds']:.0f} |")
            continue
        lowering = f"{found['islands']} islands" if found["lowering"] == "islands" else "graph"
        sqnr = "exact" if found["sqnr_db"] is None else f"{found['sqnr_db']:.1f} dB"
        onnx = "one Python forward: none" if found["lowering"] == "islands" else found["onnx"][:70]
        lines.append(f"| {found['name']} | {lowering} | {100 * found['share']:.1f} % | {sqnr} | {onnx} | {found['seconds']:.0f} |")
    return "\n".join(lines)


def limited(context: Any, name: str, seconds: float) -> dict[str, Any]:
    """``row`` in a child process, ended where it takes longer."""
    with tempfile.TemporaryDirectory() as place:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(sender, name, str(Path(place) / "run")))
        child.start()
        sender.close()
        found: dict[str, Any] = {"name": name, "error": f"over {seconds:.0f} seconds", "traceback": False, "seconds": seconds}
        if receiver.poll(seconds):
            try:
                found = receiver.recv()
            except EOFError:
                found |= {"error": "the process ended without a word", "traceback": True, "seconds": 0.0}
        child.kill()
        child.join()
    return found


def _child(sender: Any, name: str, place: str) -> None:
    sender.send(row(name, place))


def summary(rows: list[dict[str, Any]]) -> str:
    shares = [found["share"] for found in rows if not found["error"]]
    tracebacks = [found["name"] for found in rows if found["traceback"]]
    islands = sum(found.get("lowering") == "islands" for found in rows)
    median = f"{100 * statistics.median(shares):.1f} %" if shares else "none"
    return (
        f"{len(shares)} of {len(rows)} models came to a verdict, {islands} of them in islands; {len(tracebacks)} tracebacks "
        f"{' '.join(tracebacks)}; median part of the multiply-adds on integers: {median}"
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="GLOB", default=["*"])
    parser.add_argument("--seconds", type=float, default=240, metavar="LIMIT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures here, and do not run again what came to a verdict")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the markers of this file")
    args = parser.parse_args()
    known = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    done = {found["name"]: found for found in known if not found["error"]}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    rows = []
    for name in cases():
        if any(fnmatchcase(name, glob) for glob in args.names):
            done[name] = found = done.get(name) or limited(context, name, args.seconds)
            rows.append(found)
            print(line(found), flush=True)
            if args.json:
                args.json.write_text(json.dumps(list(done.values()), indent=1))
    print(summary(rows))
    put(f"{summary(rows)}\n\n{table(rows)}", args.write, MARKS)
    return 1 if any(found["traceback"] for found in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
