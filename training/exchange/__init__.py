"""Checkpoints for other programs, and theirs for minigpt."""
