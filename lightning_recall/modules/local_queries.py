"""Splits the queries of a batch over the processes."""

import torch
from torch import Tensor, nn

from lightning_recall._lightning import LightningModule
from lightning_recall.losses.base import has_flag
from lightning_recall.virtual_pairs import VirtualPairs, append_virtual_labels


def local_queries(
    module: LightningModule, loss: nn.Module, labels: Tensor, pairs: VirtualPairs | None
) -> tuple[Tensor | None, float]:
    """Indices of this process's queries, and the loss scale world_size * len(local) / len(all).

    Returns (None, 1.0) if there are fewer queries than processes, or if the loss counts images without a positive
    and there are some; every process then computes the loss of all queries.
    """
    all_labels = append_virtual_labels(labels, pairs)
    _, inverse, counts = torch.unique(all_labels, return_inverse=True, return_counts=True)
    queries = (counts[inverse] > 1).nonzero().squeeze(1)  # those with a positive
    if len(queries) < len(all_labels) and has_flag(loss, "counts_singletons"):
        return None, 1.0
    rank, world_size = module.trainer.global_rank, module.trainer.world_size
    local = queries[rank::world_size]
    return (local, world_size * len(local) / len(queries)) if len(queries) >= world_size else (None, 1.0)
