"""An ONNX file layer by layer: a layer of other weights is found, and roundings alone are within a step."""

from __future__ import annotations

from pathlib import Path

import nets
import pytest

from engine.export.onnx import file as form

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_each_rounded_value_of_a_file_is_within_a_step_on_the_measured_models_inputs(tmp_path: Path) -> None:
    context = nets.quantized(nets.Residual)
    form.write(context, tmp_path / "model.onnx")
    found = form.load(tmp_path / "model.onnx", context).layers()
    assert found is not None and found.compared >= 3 and found.rms_steps < 1
    assert found.outputs_sqnr_db is None or found.outputs_sqnr_db > 20


@pytest.mark.parametrize("which", [0, -1])
def test_a_layer_with_other_weights_is_found_by_itself(which: int, tmp_path: Path) -> None:
    context = nets.quantized(nets.Residual)
    path = tmp_path / "model.onnx"
    form.write(context, path)
    model = onnx.load(path)
    weights = [x for x in model.graph.initializer if len(x.dims) >= 2 and x.data_type == onnx.TensorProto.INT8]
    values = onnx.numpy_helper.to_array(weights[which])
    weights[which].CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), weights[which].name))
    onnx.save(model, path)
    found = form.load(path, context).layers()
    assert found is not None
    assert found.rms_steps > 1 or (found.outputs_sqnr_db is not None and found.outputs_sqnr_db < 20)
