"""Model families; each declares the state that decoding it needs."""
