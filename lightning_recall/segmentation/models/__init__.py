"""Networks from images (B, 3, H, W) to logits (B, C, H, W)."""
