"""torchvision's classifiers by name, as its DEFAULT weights describe themselves. Torch-free.

A test holds the table against the torchvision that is installed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from engine.models.transform import MEAN, STD, Interpolation, Transform, Triple
from engine.paths import matching

HALF: Triple = (0.5, 0.5, 0.5)
_MIB = 2**20
_FAMILIES = {
    "resnet": "ResNet: convolutions with shortcuts",
    "resnext": "ResNeXt: a ResNet with grouped convolutions",
    "wide_resnet": "Wide ResNet: a ResNet with more channels",
    "mobilenet_v2": "MobileNet v2: depthwise convolutions, narrow shortcuts",
    "mobilenet_v3": "MobileNet v3: depthwise convolutions, hardswish, squeeze-and-excitation",
    "efficientnet": "EfficientNet: depthwise convolutions, SiLU, squeeze-and-excitation",
    "efficientnet_v2": "EfficientNet v2: its first blocks with whole convolutions",
    "regnet": "RegNet: grouped convolutions; the Y models with squeeze-and-excitation",
    "convnext": "ConvNeXt: 7×7 depthwise convolutions, layer normalization, GELU",
    "vit": "Vision Transformer: attention between patches",
    "swin": "Swin Transformer: attention in shifted windows",
    "swin_v2": "Swin Transformer v2: scaled cosine attention in shifted windows",
    "maxvit": "MaxViT: convolutions, attention in blocks and across a grid",
    "densenet": "DenseNet: each layer reads all before it",
    "shufflenet": "ShuffleNet v2: depthwise convolutions, channels shuffled",
    "mnasnet": "MNASNet: depthwise convolutions, found by search",
    "squeezenet": "SqueezeNet: few parameters, concatenated 1×1 and 3×3 convolutions",
    "googlenet": "GoogLeNet: parallel convolutions, concatenated",
    "inception": "Inception v3: parallel and split convolutions, concatenated",
    "vgg": "VGG: plain 3×3 convolutions, large linear layers",
    "alexnet": "AlexNet: five convolutions, large linear layers",
}
# Those whose first layers can keep the resolution of a small image; the rest divide it into patches or pool between layers.
_SMALL_STEMS = (
    "resnet", "resnext", "wide_resnet", "mobilenet_v2", "mobilenet_v3", "efficientnet", "efficientnet_v2", "regnet", "densenet",
    "shufflenet", "mnasnet", "googlenet",
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A network that torchvision builds, and its DEFAULT weights: ``params`` at 1,000 classes, the beginning of the ``file``'s
    name with its size in ``mib`` (2**20 bytes), ``top1`` (0..1) on ImageNet, and the ``transform`` that they expect."""

    name: str
    family: str
    params: int
    file: str
    mib: float
    top1: float
    transform: Transform

    @property
    def description(self) -> str:
        return _FAMILIES[self.family]

    @property
    def bytes(self) -> int:
        return round(self.mib * _MIB)

    @property
    def has_small_stem(self) -> bool:
        """Whether the network can begin with a 3x3 convolution of stride 1, without pooling."""
        return self.family in _SMALL_STEMS

    def cached(self) -> Path | None:
        """The file of these weights in torch hub's cache, or None."""
        return cached_file(self.file, self.mib)


def cached_file(start: str, mib: float) -> Path | None:
    """The file in torch hub's cache whose name begins with ``start`` and that has ``mib`` times 2**20 bytes, or None."""
    for path in matching(checkpoints(), f"{start}-", ".pth"):
        # Other weights of the same network differ in the hash at the end of the name, and by some bytes.
        if abs(path.stat().st_size / _MIB - mib) < 0.0011:
            return path
    return None


def checkpoints() -> Path:
    """The folder to which torch hub downloads; it may not exist."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def _row(
    name: str, family: str, params: int, file: str, mib: float, top1: float, size: int, resize: int,
    interpolation: Interpolation = "bilinear", around: Triple | None = None,
) -> Published:  # fmt: skip
    transform = Transform(size, resize, interpolation, around or MEAN, around or STD)
    return Published(name, family, params, file, mib, round(top1 / 100, 5), transform)


PUBLISHED: tuple[Published, ...] = (
    _row("resnet18", "resnet", 11689512, "resnet18", 44.661, 69.758, 224, 256),
    _row("resnet34", "resnet", 21797672, "resnet34", 83.275, 73.314, 224, 256),
    _row("resnet50", "resnet", 25557032, "resnet50", 97.79, 80.858, 224, 232),
    _row("resnet101", "resnet", 44549160, "resnet101", 170.53, 81.886, 224, 232),
    _row("resnet152", "resnet", 60192808, "resnet152", 230.474, 82.284, 224, 232),
    _row("resnext50_32x4d", "resnext", 25028904, "resnext50_32x4d", 95.833, 81.198, 224, 232),
    _row("resnext101_64x4d", "resnext", 83455272, "resnext101_64x4d", 319.318, 83.246, 224, 232),
    _row("resnext101_32x8d", "resnext", 88791336, "resnext101_32x8d", 339.673, 82.834, 224, 232),
    _row("wide_resnet50_2", "wide_resnet", 68883240, "wide_resnet50_2", 263.124, 81.602, 224, 232),
    _row("wide_resnet101_2", "wide_resnet", 126886696, "wide_resnet101_2", 484.747, 82.51, 224, 232),
    _row("mobilenet_v2", "mobilenet_v2", 3504872, "mobilenet_v2", 13.598, 72.154, 224, 232),
    _row("mobilenet_v3_small", "mobilenet_v3", 2542856, "mobilenet_v3_small", 9.829, 67.668, 224, 256),
    _row("mobilenet_v3_large", "mobilenet_v3", 5483032, "mobilenet_v3_large", 21.107, 75.274, 224, 232),
    _row("efficientnet_v2_s", "efficientnet_v2", 21458488, "efficientnet_v2_s", 82.704, 84.228, 384, 384),
    _row("efficientnet_v2_m", "efficientnet_v2", 54139356, "efficientnet_v2_m", 208.01, 85.112, 480, 480),
    _row("efficientnet_v2_l", "efficientnet_v2", 118515272, "efficientnet_v2_l", 454.573, 85.808, 480, 480, "bicubic", HALF),
    _row("efficientnet_b0", "efficientnet", 5288548, "efficientnet_b0_rwightman", 20.451, 77.692, 224, 256, "bicubic"),
    _row("efficientnet_b1", "efficientnet", 7794184, "efficientnet_b1", 30.136, 79.838, 240, 255),
    _row("efficientnet_b2", "efficientnet", 9109994, "efficientnet_b2_rwightman", 35.174, 80.608, 288, 288, "bicubic"),
    _row("efficientnet_b3", "efficientnet", 12233232, "efficientnet_b3_rwightman", 47.184, 82.008, 300, 320, "bicubic"),
    _row("efficientnet_b4", "efficientnet", 19341616, "efficientnet_b4_rwightman", 74.489, 83.384, 380, 384, "bicubic"),
    _row("efficientnet_b5", "efficientnet", 30389784, "efficientnet_b5_lukemelas", 116.864, 83.444, 456, 456, "bicubic"),
    _row("efficientnet_b6", "efficientnet", 43040704, "efficientnet_b6_lukemelas", 165.362, 84.008, 528, 528, "bicubic"),
    _row("efficientnet_b7", "efficientnet", 66347960, "efficientnet_b7_lukemelas", 254.675, 84.122, 600, 600, "bicubic"),
    _row("regnet_y_400mf", "regnet", 4344144, "regnet_y_400mf", 16.806, 75.804, 224, 232),
    _row("regnet_x_400mf", "regnet", 5495976, "regnet_x_400mf", 21.257, 74.864, 224, 232),
    _row("regnet_y_800mf", "regnet", 6432512, "regnet_y_800mf", 24.774, 78.828, 224, 232),
    _row("regnet_x_800mf", "regnet", 7259656, "regnet_x_800mf", 27.945, 77.522, 224, 232),
    _row("regnet_x_1_6gf", "regnet", 9190136, "regnet_x_1_6gf", 35.339, 79.668, 224, 232),
    _row("regnet_y_1_6gf", "regnet", 11202430, "regnet_y_1_6gf", 43.152, 80.876, 224, 232),
    _row("regnet_x_3_2gf", "regnet", 15296552, "regnet_x_3_2gf", 58.756, 81.196, 224, 232),
    _row("regnet_y_3_2gf", "regnet", 19436338, "regnet_y_3_2gf", 74.567, 81.982, 224, 232),
    _row("regnet_y_8gf", "regnet", 39381472, "regnet_y_8gf", 150.701, 82.828, 224, 232),
    _row("regnet_x_8gf", "regnet", 39572648, "regnet_x_8gf", 151.456, 81.682, 224, 232),
    _row("regnet_x_16gf", "regnet", 54278536, "regnet_x_16gf", 207.627, 82.716, 224, 232),
    _row("regnet_y_16gf", "regnet", 83590140, "regnet_y_16gf", 319.49, 82.886, 224, 232),
    _row("regnet_x_32gf", "regnet", 107811560, "regnet_x_32gf", 412.039, 83.014, 224, 232),
    _row("regnet_y_32gf", "regnet", 145046770, "regnet_y_32gf", 554.076, 83.368, 224, 232),
    _row("regnet_y_128gf", "regnet", 644812894, "regnet_y_128gf_swag", 2461.564, 88.228, 384, 384, "bicubic"),
    _row("convnext_tiny", "convnext", 28589128, "convnext_tiny", 109.119, 82.52, 224, 236),
    _row("convnext_small", "convnext", 50223688, "convnext_small", 191.703, 83.616, 224, 230),
    _row("convnext_base", "convnext", 88591464, "convnext_base", 338.064, 84.062, 224, 232),
    _row("convnext_large", "convnext", 197767336, "convnext_large", 754.537, 84.414, 224, 232),
    _row("vit_b_16", "vit", 86567656, "vit_b_16", 330.285, 81.072, 224, 256),
    _row("vit_b_32", "vit", 88224232, "vit_b_32", 336.604, 75.912, 224, 256),
    _row("vit_l_16", "vit", 304326632, "vit_l_16", 1161.023, 79.662, 224, 242),
    _row("vit_l_32", "vit", 306535400, "vit_l_32", 1169.449, 76.972, 224, 256),
    _row("vit_h_14", "vit", 633470440, "vit_h_14_swag", 2416.643, 88.552, 518, 518, "bicubic"),
    _row("swin_v2_t", "swin_v2", 28351570, "swin_v2_t", 108.626, 82.072, 256, 260, "bicubic"),
    _row("swin_v2_s", "swin_v2", 49737442, "swin_v2_s", 190.675, 83.712, 256, 260, "bicubic"),
    _row("swin_v2_b", "swin_v2", 87930848, "swin_v2_b", 336.372, 84.112, 256, 272, "bicubic"),
    _row("swin_t", "swin", 28288354, "swin_t", 108.19, 81.474, 224, 232, "bicubic"),
    _row("swin_s", "swin", 49606258, "swin_s", 189.786, 83.196, 224, 246, "bicubic"),
    _row("swin_b", "swin", 87768224, "swin_b", 335.364, 83.582, 224, 238, "bicubic"),
    _row("maxvit_t", "maxvit", 30919624, "maxvit_t", 118.769, 83.7, 224, 224, "bicubic"),
    _row("densenet121", "densenet", 7978856, "densenet121", 30.845, 74.434, 224, 256),
    _row("densenet169", "densenet", 14149480, "densenet169", 54.708, 75.6, 224, 256),
    _row("densenet201", "densenet", 20013928, "densenet201", 77.373, 76.896, 224, 256),
    _row("densenet161", "densenet", 28681000, "densenet161", 110.369, 77.138, 224, 256),
    _row("shufflenet_v2_x0_5", "shufflenet", 1366792, "shufflenetv2_x0.5", 5.282, 60.552, 224, 256),
    _row("shufflenet_v2_x1_0", "shufflenet", 2278604, "shufflenetv2_x1", 8.791, 69.362, 224, 256),
    _row("shufflenet_v2_x1_5", "shufflenet", 3503624, "shufflenetv2_x1_5", 13.557, 72.996, 224, 232),
    _row("shufflenet_v2_x2_0", "shufflenet", 7393996, "shufflenetv2_x2_0", 28.433, 76.23, 224, 232),
    _row("mnasnet0_5", "mnasnet", 2218512, "mnasnet0.5_top1_67.823", 8.591, 67.734, 224, 256),
    _row("mnasnet0_75", "mnasnet", 3170208, "mnasnet0_75", 12.303, 71.18, 224, 232),
    _row("mnasnet1_0", "mnasnet", 4383312, "mnasnet1.0_top1_73.512", 16.915, 73.456, 224, 256),
    _row("mnasnet1_3", "mnasnet", 6282256, "mnasnet1_3", 24.246, 76.506, 224, 232),
    _row("squeezenet1_1", "squeezenet", 1235496, "squeezenet1_1", 4.729, 58.178, 224, 256),
    _row("squeezenet1_0", "squeezenet", 1248424, "squeezenet1_0", 4.778, 58.092, 224, 256),
    _row("googlenet", "googlenet", 6624904, "googlenet", 49.731, 69.778, 224, 256),
    _row("inception_v3", "inception", 27161264, "inception_v3_google", 103.903, 77.294, 299, 342),
    _row("vgg11", "vgg", 132863336, "vgg11", 506.84, 69.02, 224, 256),
    _row("vgg11_bn", "vgg", 132868840, "vgg11_bn", 506.881, 70.37, 224, 256),
    _row("vgg13", "vgg", 133047848, "vgg13", 507.545, 69.928, 224, 256),
    _row("vgg13_bn", "vgg", 133053736, "vgg13_bn", 507.59, 71.586, 224, 256),
    _row("vgg16", "vgg", 138357544, "vgg16", 527.796, 71.592, 224, 256),
    _row("vgg16_bn", "vgg", 138365992, "vgg16_bn", 527.866, 73.36, 224, 256),
    _row("vgg19", "vgg", 143667240, "vgg19", 548.051, 72.376, 224, 256),
    _row("vgg19_bn", "vgg", 143678248, "vgg19_bn", 548.143, 74.218, 224, 256),
    _row("alexnet", "alexnet", 61100840, "alexnet-owt", 233.087, 56.522, 224, 256),
)
