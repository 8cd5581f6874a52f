"""Tables and pictures of two domains."""
