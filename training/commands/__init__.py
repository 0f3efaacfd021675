"""The commands of `minigpt` that make checkpoints and evaluate them; torch is imported when one runs."""
