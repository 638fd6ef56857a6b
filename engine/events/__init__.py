"""What a run emits: frozen, tensor-free values. Torch-free."""
