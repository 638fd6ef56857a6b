"""Images as batches in three splits."""
