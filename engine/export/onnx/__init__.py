"""Quantized models as ONNX."""
