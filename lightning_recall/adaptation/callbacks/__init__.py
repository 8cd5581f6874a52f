"""Tables and pictures of two domains, and a table of predictions."""

from lightning_recall.adaptation.callbacks.prediction_writer import PredictionWriter

__all__ = ["PredictionWriter"]
