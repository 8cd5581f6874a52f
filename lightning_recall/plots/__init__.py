"""Plots search results and training curves with matplotlib, without Lightning."""

from lightning_recall.plots.charts import draw_embedding_map, draw_recall_over_k, draw_similarities
from lightning_recall.plots.retrieved_images import draw_neighbors, draw_retrieved_images
from lightning_recall.plots.search_results import FoundImage, draw_search_results
from lightning_recall.plots.training_curves import draw_training_curves
from lightning_recall.plots.verification import draw_verification

__all__ = [
    "FoundImage",
    "draw_embedding_map",
    "draw_neighbors",
    "draw_recall_over_k",
    "draw_retrieved_images",
    "draw_search_results",
    "draw_similarities",
    "draw_training_curves",
    "draw_verification",
]
