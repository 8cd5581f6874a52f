"""Domain adaptation: classifiers for a domain without labels, by adversarial training and domain mixup."""
