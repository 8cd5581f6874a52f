"""Networks for domain adaptation."""
