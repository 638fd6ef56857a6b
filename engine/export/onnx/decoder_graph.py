"""A quantized decoder as one ONNX graph that reads text whole and goes on token by token, over a cache of keys and values.

Inputs: ``input_ids`` int64 (N, T), and for each block ``past_key_values.i.key`` and ``.value`` (N, heads, P, width), P being 0 at
the beginning. Outputs: ``logits`` (N, T, vocabulary) and ``present.i.key`` and ``.value`` (N, heads, P + T, width).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.export.onnx import decoder_layers as layers
from engine.export.onnx.architecture import Block, architecture
from engine.export.onnx.decoder_matrices import MICROSOFT, Matrices, per_token
from engine.export.onnx.graph import IR_VERSION, OPSET, OUTPUT, Graph
from engine.kernels.matrix.kind import kind_of
from engine.lowering.modules.quantized import QuantizedDecoder

IDS = "input_ids"


def past(block: int) -> tuple[str, str]:
    return f"past_key_values.{block}.key", f"past_key_values.{block}.value"


def present(block: int) -> tuple[str, str]:
    return f"present.{block}.key", f"present.{block}.value"


def build(decoder: QuantizedDecoder, about: Mapping[str, str], accuracy: int = 4) -> Any:
    """The ``ModelProto``, with ``about`` as its properties. ``accuracy`` 4 multiplies integers where the recipe
    rounds activations, 1 computes with float32 ones.

    Raises EngineError for families and groups that are not covered."""
    return _Writer(decoder, accuracy).model(about)


class _Writer:
    def __init__(self, decoder: QuantizedDecoder, accuracy: int) -> None:
        self.decoder, self.form = decoder, architecture(decoder.twin)
        self.graph = Graph()
        for i in range(len(self.form.blocks)):
            for name in (*past(i), *present(i)):
                self.graph.name(name)
        self.graph.name(IDS)
        self.matrices = Matrices(self.graph, accuracy)

    def model(self, about: Mapping[str, str]) -> Any:
        form, graph = self.form, self.graph
        at = layers.places(graph, IDS, past(0)[0])
        x = self.rows(IDS, form.embedding)
        if form.enter:
            x = self.multiply(x, form.enter)
        if form.positions:
            places = graph.node("Add", [at.now, graph.constant(form.skipped)], "places") if form.skipped else at.now
            x = graph.node(
                "Add", [x, self.rows(graph.node("Unsqueeze", [places, graph.constant([0])], "places"), form.positions)], "entering"
            )
        masks = {window: layers.mask(graph, at, window) for window in dict.fromkeys(block.window for block in form.blocks)}
        turn = layers.angles(graph, at, form.rotary) if form.rotary else None
        for i, block in enumerate(form.blocks):
            x = self.block(x, i, block, masks[block.window], turn)
        if form.norm:
            x = self.norm(x, form.norm)
        if form.leave:
            x = self.multiply(x, form.leave)
        return self.finished(self.multiply(x, form.head), about)

    def block(self, x: str, number: int, block: Block, mask: str, turn: tuple[str, str] | None) -> str:
        first, second = block.norms
        if block.order == "after":
            x = self.norm(self.add(x, self.attention(x, number, block, mask, turn), block.out), first)
            return self.norm(self.add(x, self.mlp(x, block), block.down), second)
        attended = self.attention(self.norm(x, first), number, block, mask, turn)
        if block.order == "parallel":
            return self.add(x, self.add(attended, self.mlp(self.norm(x, second), block), block.out), block.down)
        x = self.add(x, attended, block.out)
        return self.add(x, self.mlp(self.norm(x, second), block), block.down)

    def attention(self, x: str, number: int, block: Block, mask: str, turn: tuple[str, str] | None) -> str:
        form, graph, at = self.form, self.graph, block.out.rpartition(".")[0]
        q, k, v = self.three(x, block, at)
        if block.query_norm:
            q, k = self.norm(q, block.query_norm), self.norm(k, block.key_norm)
        q, k, v = (layers.turn_heads(graph, part, at) for part in (q, k, v))
        if turn and form.rotary:
            q, k = (layers.turned(graph, part, turn, form.rotary, form.width, at) for part in (q, k))
        held = []
        for before, new, name in zip(past(number), (k, v), present(number), strict=True):
            graph.nodes.append(graph.onnx.helper.make_node("Concat", [before, new], [name], name=f"{name}/Concat", axis=2))
            held.append(name)
        return self.multiply(layers.attend(graph, q, held[0], held[1], mask, form, block.scale, at), block.out)

    def three(self, x: str, block: Block, at: str) -> tuple[str, str, str]:
        """Queries, keys and values, (N, T, heads, width) each."""
        form, graph = self.form, self.graph
        if not block.fused:
            q, k, v = (self.multiply(x, path) for path in block.qkv)
        else:
            x = self.multiply(x, block.qkv[0])
            if block.fused == "heads":
                q, k, v = layers.split(graph, layers.heads(graph, x, form.heads, 3 * form.width, at), [form.width] * 3, at)
                return q, k, v
            q, k, v = layers.split(graph, x, [form.heads * form.width] * 3, at)
        counts = (form.heads, form.shared, form.shared)
        first, second, third = (layers.heads(graph, part, n, form.width, at) for part, n in zip((q, k, v), counts, strict=True))
        return first, second, third

    def mlp(self, x: str, block: Block) -> str:
        act, up = self.form.activation, self.multiply(x, block.up)
        if not block.gate:
            return self.multiply(layers.activation(self.graph, up, act, block.up), block.down)
        gate = layers.activation(self.graph, self.multiply(x, block.gate), act, block.gate)
        return self.multiply(self.graph.node("Mul", [gate, up], block.up), block.down)

    def add(self, x: str, y: str, path: str) -> str:
        return self.graph.node("Add", [x, y], f"{path}/sum")

    def norm(self, x: str, path: str) -> str:
        return layers.norm(self.graph, x, self.decoder.twin.get_submodule(path), path)

    def rows(self, ids: str, path: str) -> str:
        matrix = self.decoder.matrices.get(path)
        if matrix is not None:
            return self.matrices.rows(ids, matrix.weight, path)
        return self.graph.node("Gather", [self.graph.constant(self.weight(path), f"{path}.weight"), ids], path, axis=0)

    def multiply(self, x: str, path: str) -> str:
        """The layer at ``path``: on integers, or in float32 where it is kept."""
        graph, module, matrix = self.graph, self.decoder.twin.get_submodule(path), self.decoder.matrices.get(path)
        bias: Tensor | None = module.bias
        if matrix is not None and per_token(matrix):
            return self.matrices.multiply_tokens(x, matrix.weight, bias, path)
        if matrix is not None:
            return self.matrices.multiply(self.on_grid(x, path), matrix.weight, bias, path, matrix.activations is None)
        stored = graph.constant(self.weight(path), f"{path}.weight")
        # Conv1D holds (in, out); the others' rows may be an embedding's too.
        if kind_of(module) != "Conv1D":
            stored = graph.node("Transpose", [stored], path, perm=[1, 0])
        made = graph.node("MatMul", [x, stored], path)
        return made if bias is None else graph.node("Add", [made, graph.constant(bias, f"{path}.bias")], path)

    def on_grid(self, x: str, path: str) -> str:
        """``x`` rounded to the grid that calibration found, where there is one."""
        grid = self.decoder.matrices[path].grid
        if grid is None:
            return x
        graph = self.graph
        ends = [graph.constant(float((n - grid.zero_point) * grid.scale)) for n in (0, grid.qmax)]
        step, zero = graph.constant(float(grid.scale)), graph.constant(torch.tensor(grid.zero_point, dtype=torch.uint8))
        rounded = graph.node("QuantizeLinear", [graph.node("Clip", [x, *ends], path), step, zero], path)
        return graph.node("DequantizeLinear", [rounded, step, zero], path)

    def weight(self, path: str) -> Tensor:
        found: Tensor = self.decoder.twin.get_submodule(path).weight
        return found.detach()

    def finished(self, logits: str, about: Mapping[str, str]) -> Any:
        graph, form, helper = self.graph, self.form, self.graph.onnx.helper
        kind, rows = graph.onnx.TensorProto, int(self.decoder.twin.get_submodule(form.head).weight.shape[0])
        graph.nodes.append(helper.make_node("Identity", [logits], [OUTPUT], name=f"{OUTPUT}/Identity"))
        inputs = [helper.make_tensor_value_info(IDS, kind.INT64, ["batch", "tokens"])]
        outputs = [helper.make_tensor_value_info(OUTPUT, kind.FLOAT, ["batch", "tokens", rows])]
        for i in range(len(form.blocks)):
            for names, length, into in ((past(i), "past", inputs), (present(i), "past_and_tokens", outputs)):
                into += [helper.make_tensor_value_info(name, kind.FLOAT, ["batch", form.shared, length, form.width]) for name in names]
        made = helper.make_graph(graph.nodes, "qtui", inputs, outputs, graph.initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION, producer_name="qtui")
        helper.set_model_props(model, dict(about))
        return model
