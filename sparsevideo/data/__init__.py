"""Load lists and folders of videos and images as batches."""
