"""Semantic segmentation: losses for rare classes and for boundaries, a LightningModule, data modules and callbacks."""
