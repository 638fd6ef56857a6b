"""Integer matrix kernels of a GPU, and the probe that trusts them."""
