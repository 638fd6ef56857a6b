"""Integers and their scales: pure functions and frozen values, below kernels and lowerings alike."""
