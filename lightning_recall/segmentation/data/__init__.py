"""Images with masks, and transforms of both."""
