"""Kernels that no library here has, written as LLVM IR and compiled for this processor by llvmlite, where that is installed."""
