"""Where models come from: the registry, one's own factories, and the weights that belong to them."""
