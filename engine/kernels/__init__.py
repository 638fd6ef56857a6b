"""What computes an integer layer on this machine: one interface, several kernels, a probe that chooses."""
