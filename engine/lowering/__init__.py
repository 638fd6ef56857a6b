"""How a model becomes integers."""
