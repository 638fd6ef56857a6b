"""What a run is asked. Torch-free."""
