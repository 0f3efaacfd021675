"""Text to token ids and back; the only place that knows tiktoken."""
