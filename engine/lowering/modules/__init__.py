"""A model as it is, its matrices on integers and floats between them."""
