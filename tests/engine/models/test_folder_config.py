"""A config that asks for what no model has is refused before anything is built."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.errors import EngineError
from engine.models.transformers_folder import look


@pytest.mark.parametrize("change", [{"n_layer": 10**9}, {"num_hidden_layers": 1e30}, {"text_config": {"num_hidden_layers": 10**7}}])
def test_a_huge_number_of_layers_is_refused_at_once(tmp_path: Path, change: dict[str, Any]) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 2}))
    assert look(tmp_path).config["n_layer"] == 2
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **change}))
    start = time.monotonic()
    with pytest.raises(EngineError, match="layers .*more than any model has"):
        look(tmp_path)
    assert time.monotonic() - start < 5
