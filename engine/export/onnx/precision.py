"""Sums of 8-bit products in ONNX Runtime on processors without VNNI, where they saturate."""

from __future__ import annotations

from typing import Any

from engine.kernels.probe import probe

# Weights become unsigned where products of uint8 and int8 are added in 16 bits; without effect on processors with VNNI.
OPTION = "session.x64quantprecision"
NOTE = f"on processors without VNNI ONNX Runtime needs {OPTION}=1, or its sums saturate; it was read back so"


def precise(options: Any) -> str:
    """Set the option on ``options`` where this processor saturates; a note for a person, empty where nothing is set. Of graphs with
    QuantizeLinear that share zero points ONNX Runtime 1.32 cannot be loaded so: those have 7-bit activations on such processors."""
    if not probe().saturates:
        return ""
    options.add_session_config_entry(OPTION, "1")
    return NOTE
