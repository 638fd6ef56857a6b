"""Quantized decoders: their parts, the kernels these run on, their file."""
