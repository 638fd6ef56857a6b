"""Data sets: what a model is calibrated, trained and measured on. ``registry`` is the way in."""
