"""What a run found. Torch-free."""
