"""Callbacks that show and write what a segmentation network predicts."""
