"""LightningDataModules of images and masks."""
