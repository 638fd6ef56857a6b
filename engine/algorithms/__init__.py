"""What improves low-bit weights: each a module of pure functions on matrices, joined in ``registry``."""
