"""Text as token ids in three splits."""
