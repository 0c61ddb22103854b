"""From lists and folders to batches."""
