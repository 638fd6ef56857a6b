"""What each layer is to become, and why."""
