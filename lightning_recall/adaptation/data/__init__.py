"""Training batches of two domains."""
