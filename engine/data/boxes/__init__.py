"""Images with boxes: what is where."""
