"""Quantization itself: arithmetic, observers, fake-quantizers, the plan, and the conversion to integers."""
