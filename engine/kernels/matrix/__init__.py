"""Kernels of quantized matrices with float or integer activations."""
