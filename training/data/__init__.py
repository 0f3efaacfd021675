"""Text to batches: corpora, prepared token files, windows."""
