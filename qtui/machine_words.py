"""What a machine can run, as titled lines: for ``qtui doctor`` and for the app's panel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Lines = list[tuple[str, str]]
GIB = 2**30
_SATURATES = {True: "7 bits: sums of 8-bit products saturate here", False: "8 bits: sums of 8-bit products are exact here"}


def sections(found: Mapping[str, Any]) -> list[tuple[str, Lines]]:
    """``found`` is what ``engine.runs.examine`` gives; each section has its title and (name, value) lines."""
    return [
        ("versions", _versions(found)),
        ("processor", _processor(found)),
        ("integer kernels", _kernels(found)),
        ("GPUs", _gpus(found)),
        *([("number formats", _formats(found["formats"]))] if found.get("formats") else []),
        ("optional packages", _packages(found)),
        ("folders", _folders(found)),
    ]


def moved(found: Mapping[str, Any] | None, environment: Mapping[str, Any]) -> str:
    """A sentence where a report's ``environment`` has other instructions than this machine (``found``); empty where not, and
    where one of them is not known."""
    if not found or not environment.get("isa"):
        return ""
    there, here = (f"{about.get('isa')}, {'VNNI' if about.get('vnni') else 'no VNNI'}" for about in (environment, found))
    if there == here:
        return ""
    return f"These figures are of a machine with {there}; this one has {here}: speed and rounding differ here, so run it again to know them"


def _versions(found: Mapping[str, Any]) -> Lines:
    lines = [(name, str(found.get(name) or "not installed")) for name in ("python", "torch", "torchvision")]
    tested = found.get("torch_tested")
    if tested:
        verdict = "tested with" if tested["inside"] else "not tested: this program is tested with"
        lines[1] = ("torch", f"{lines[1][1]}, {verdict} {tested['range']}")
    return lines


def _processor(found: Mapping[str, Any]) -> Lines:
    features: Mapping[str, bool] = found.get("features") or {}
    has, lacks = ([name for name, there in features.items() if there is wanted] for wanted in (True, False))
    told = [("has", ", ".join(has) or "none of the below"), ("has not", ", ".join(lacks))] if features else []
    bits = _SATURATES.get(found["saturates"], f"{found['activation_bits']} bits: not measured, no kernel ran")
    return [
        ("name", str(found.get("processor") or "unknown")),
        ("instructions", str(found["isa"])),
        ("VNNI", _vnni(bool(found["vnni"]), features)),
        *(line for line in told if line[1]),
        ("activations", bits),
        ("cores", _cores(found)),
        ("threads", _threads(found)),
        *_limits(found),
    ]


def _vnni(used: bool, features: Mapping[str, bool]) -> str:
    if used:
        return "yes, used by the kernels"
    there = any(there for name, there in features.items() if name.endswith("_vnni"))
    return "not used by the kernels, though the processor has it: is ONEDNN_MAX_CPU_ISA set?" if there else "no"


def _cores(found: Mapping[str, Any]) -> str:
    parts = [_count(found.get("processors"), "processor")]
    if found.get("physical"):
        parts.append(_count(found["physical"], "physical core"))
    if found.get("allowed") and found["allowed"] != found.get("processors"):
        parts.append(f"{found['allowed']} allowed to this process")
    if found.get("container"):
        parts.append(f"the container's limit is {found['container']:g}")
    return ", ".join(parts)


def _threads(found: Mapping[str, Any]) -> str:
    threads = found["threads"]
    may = min((n for n in (found.get("allowed"), found.get("container"), found.get("processors")) if n), default=threads)
    return f"{threads} used by torch" + (f": more than the {may:g} that it may run on slow it down" if threads > may else "")


def _limits(found: Mapping[str, Any]) -> Lines:
    """What the threads reached when it was measured: a large product, and a plain read."""
    known = found.get("limits")
    if not known:
        return []
    peak, read = known["peak_ops_per_s"] / 1e9, known["read_bytes_per_s"] / 1e9
    return [
        ("int8 peak", f"{peak:,.0f} GOP/s, measured in a large product of {known['kernel']}"),
        ("memory", f"{read:.1f} GB/s, a plain read"),
    ]


def _count(number: Any, what: str) -> str:
    return f"{number or '?'} {what}{'' if number == 1 else 's'}"


def _kernels(found: Mapping[str, Any]) -> Lines:
    lines = [(name, "exact" if error is None else str(error)) for name, error in found["kernels"].items()]
    return lines if found.get("integer", True) else [*lines, ("none", "results are simulated here: their speed says nothing")]


def _gpus(found: Mapping[str, Any]) -> Lines:
    lines: Lines = []
    for gpu in found["gpus"]:
        lines.append((gpu["name"], str(gpu["error"]) if gpu.get("error") else _memory(gpu)))
        if gpu.get("capability"):
            able = [name for name in ("int8", "bfloat16") if gpu.get(name)]
            units = f"matrix units for {' and '.join(able)}" if able else "no matrix units for int8 or bfloat16"
            lines.append(("", f"compute capability {gpu['capability']}, {units}"))
    if lines:
        lines.append(("driver", f"{found.get('driver') or 'unknown'}, torch is built for CUDA {found.get('cuda') or '–'}"))
        lines += [(name, "right" if error is None else str(error)) for name, error in (found.get("gpu_kernels") or {}).items()]
        lines.append(("language", "models run on it as a whole, on the integer kernels that are right"))
        lines.append(("networks", "calibration and training; integer layers run on the processor, and on a GPU through an export"))
    return lines or [("none", "calibration and training run on the processor")]


def _memory(gpu: Mapping[str, Any]) -> str:
    return f"{gpu['free_bytes'] / GIB:.1f} of {gpu['total_bytes'] / GIB:.1f} GiB free"


def _packages(found: Mapping[str, Any]) -> Lines:
    purposes: Mapping[str, str] = found.get("purposes") or {}
    lines = []
    for name, known in found["packages"].items():
        about = ", ".join(filter(None, (str(known or "not installed"), purposes.get(name))))
        lines.append((name, about))
    return [*lines, ("install", str(found["install"]))] if found.get("install") else lines


def _formats(formats: Mapping[str, Any]) -> Lines:
    """Which weights are multiplied as they are stored, and which are for other runtimes."""
    lines = [("on kernels", f"{formats['kernels']}: 4-bit weights as nibbles, other widths held as int8")]
    for readers, names in formats["stored"].items():
        about = f"for {readers}" if readers else "for files of this program"
        lines.append(("stored", f"{', '.join(names)}: {about}; computed in float32 here"))
    return lines


def _folders(found: Mapping[str, Any]) -> Lines:
    free: Mapping[str, Any] = found.get("free_bytes") or {}
    return [(name, f"{path}, {free[name] / 1e9:.1f} GB free" if free.get(name) else str(path)) for name, path in found["folders"].items()]
