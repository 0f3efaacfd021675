"""Make checkpoints: corpora, tokenizers, models and the loop that trains them. Never imports `service`."""
