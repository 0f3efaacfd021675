"""The commands of `minigpt` that make and examine checkpoints; torch is imported when one runs."""
