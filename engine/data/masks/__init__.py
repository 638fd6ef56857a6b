"""Images with a class for each of their pixels."""
