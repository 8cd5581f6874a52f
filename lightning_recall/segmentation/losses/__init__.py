"""Losses of (logits (B, C, ...), target (B, ...)) -> scalar, in plain torch."""
