"""What can be asked of a layer: the methods, granularities and activations that there are for it. Torch-free.

A lowering gives each of its layers one of the values below; what else there is for all layers of a role is a change of one line here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from engine.recipe.number_formats import ACTIVATION_FORMATS, NUMBER_FORMATS
from engine.recipe.spec import GRANULARITIES, METHODS, Granularity

# What a layer is to the planner. ``block`` and ``outside`` are the matrices inside and outside of a decoder's blocks, between floats;
# ``none`` is a module whose parameters nothing quantizes.
Role = Literal["none", "convolution", "linear", "block", "outside", "embedding"]
ActivationMode = Literal["none", "static", "dynamic"]


def alone() -> tuple[str, ...]:
    """The methods that look at nothing but the weights."""
    return tuple(name for name, method in METHODS.items() if not method.needs_inputs)


def anywhere() -> tuple[str, ...]:
    """The methods that need no decoder's blocks."""
    return tuple(name for name, method in METHODS.items() if method.needs_blocks is None)


@dataclass(frozen=True)
class Capabilities:
    """What can be had of a layer, the first of each being what is offered first.

    ``methods`` are names of ``engine.algorithms.registry``, ``group_bits`` is the widest weights that are kept in groups, ``affine``
    whether weights may have zero points. ``activations`` are the ways in which the inputs are rounded: on a grid from calibration
    (``static``), with a scale for each token as it comes (``dynamic``), not at all (``none``); ``activation_bits`` the widths there
    are kernels for. ``static_groups`` is whether static inputs go with weights in groups or with zero points. ``formats`` are the
    number formats that weights can have beside integers, ``activation_formats`` those of the activations beside weights of floats;
    ``undivided`` others that would, were its rows whole blocks of them.
    """

    role: Role = "none"
    methods: tuple[str, ...] = field(default_factory=anywhere)
    granularities: tuple[Granularity, ...] = GRANULARITIES
    group_bits: int = 6
    affine: bool = False
    activations: tuple[ActivationMode, ...] = ("static", "none")
    activation_bits: tuple[int, ...] = (8, 7, 6, 5, 4, 3, 2)
    static_groups: bool = True
    formats: tuple[str, ...] = ()
    activation_formats: tuple[str, ...] = ()
    undivided: tuple[str, ...] = ()

    @property
    def rounds_inputs(self) -> bool:
        """Whether there is any other way for the inputs than floats."""
        return self.activations != ("none",)

    @property
    def between_floats(self) -> bool:
        """Whether the layer reads and gives floats, or token ids, whatever it computes on."""
        return self.role in ("block", "outside", "embedding")


# Of a module that nothing quantizes, and of a layer of which no more is known than that it is one of an integer graph.
NOTHING = Capabilities("none", (), (), 0, False, ("none",), (), static_groups=False)
UNKNOWN = Capabilities()
CONVOLUTION = Capabilities("convolution")
LINEAR = Capabilities("linear")
BLOCK = Capabilities(
    "block", tuple(METHODS), ("per-channel", "per-group"), 8, True, ("dynamic", "static", "none"), (8,), static_groups=False,
    formats=tuple(NUMBER_FORMATS), activation_formats=ACTIVATION_FORMATS,
)  # fmt: skip
OUTSIDE = Capabilities(
    "outside", alone(), ("per-channel", "per-group"), 8, True, ("dynamic", "static", "none"), (8,), static_groups=False,
    formats=tuple(NUMBER_FORMATS), activation_formats=ACTIVATION_FORMATS,
)  # fmt: skip
EMBEDDING = Capabilities(
    "embedding", alone(), ("per-channel", "per-group"), 8, True, ("none",), (8,), static_groups=False, formats=tuple(NUMBER_FORMATS)
)


def of_network(role: Role) -> Capabilities:
    """Those of a convolution or linear layer of an integer graph, with the methods that the registry has by now."""
    return Capabilities(role)


def of_decoder(kind: str, in_block: bool, inputs: int | None = None) -> Capabilities:
    """Those of a matrix of a decoder, by the name of its module's class and the length of its rows, where that is known, with the
    methods that the registry has by now."""
    entries = NUMBER_FORMATS.values()
    undivided = tuple(entry.name for entry in entries if inputs is not None and not entry.divides(inputs))
    formats = tuple(entry.name for entry in entries if entry.name not in undivided)
    if in_block and kind != "Embedding":
        return replace(BLOCK, methods=tuple(METHODS), formats=formats, undivided=undivided)
    return replace(EMBEDDING if kind == "Embedding" else OUTSIDE, methods=alone(), formats=formats, undivided=undivided)
