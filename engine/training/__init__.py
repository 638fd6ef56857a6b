"""Training: the loop, schedules, optimizers and checkpoints."""
