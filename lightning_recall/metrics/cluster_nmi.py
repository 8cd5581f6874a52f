"""How well clusters of the embeddings agree with the classes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.clustering import normalized_mutual_info_score

from lightning_recall.metrics.base import RetrievalMetric
from lightning_recall.metrics.states import concatenated_states


class ClusterNMI(RetrievalMetric):
    """Normalised mutual information between the classes and k-means clusters, with k = number of classes.

    I(classes; clusters) over the mean of their entropies: 1 if they are the same partition, near 0 if they are
    unrelated, though many small clusters score well by chance. k-means starts once, from random embeddings, as is usual
    in this field: k-means++ would take hours for SOP's 11,316 classes. Needs scikit-learn: `pip install
    lightning-recall[nmi]`.

    Source: Manning, Raghavan and Schuetze, "Introduction to Information Retrieval", section 16.3.

    Args:
        normalize: whether to scale embeddings to unit length.
        ignore_index: items with this label are ignored; None keeps all items.
        max_iter: maximum number of k-means iterations.
        seed: seed of the k-means initialisation.
        kwargs: keyword arguments passed to `torchmetrics.Metric`.

    Shapes: `update` takes embeddings (B, D), labels (B,) and, optionally, the indices (B,) of the items; an index seen
    twice counts once. It takes the other arguments of `RetrievalScores.update` too, which do not change the value.
    `compute` gives {"nmi": scalar in [0, 1]}.

    Raises:
        ImportError: without scikit-learn.
        ValueError: if shapes do not match, if embeddings are not finite, or if `compute` is called before `update`.

    >>> import torch
    >>> metric = ClusterNMI()
    >>> metric.update(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]), torch.tensor([3, 3, 4, 4]))
    >>> metric.compute()
    {'nmi': tensor(1.)}
    """

    def __init__(
        self,
        normalize: bool = True,
        ignore_index: int | None = None,
        max_iter: int = 20,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(ignore_index, **kwargs)
        try:
            import sklearn.cluster  # noqa: F401  # optional dependency: fail at construction, not after the embedding pass
        except ImportError as error:
            raise ImportError("ClusterNMI needs scikit-learn: pip install lightning-recall[nmi]") from error
        self.normalize = normalize
        self.max_iter = max_iter
        self.seed = seed

    def compute(self) -> dict[str, Tensor]:
        """Computes NMI over all items seen by `update`."""
        from sklearn.cluster import KMeans

        states = concatenated_states(self, self.ignore_index)
        embeddings, labels = states["embeddings"].float(), states["labels"]
        if len(labels) == 0:
            raise ValueError(f"ClusterNMI has no items: all labels are ignore_index = {self.ignore_index}.")
        embeddings = F.normalize(embeddings, dim=1) if self.normalize else embeddings
        num_classes = len(torch.unique(labels))
        kmeans = KMeans(num_classes, init="random", n_init=1, max_iter=self.max_iter, random_state=self.seed)
        clusters = torch.from_numpy(kmeans.fit_predict(embeddings.cpu().numpy()))
        return {"nmi": partition_nmi(labels.cpu(), clusters).to(labels.device)}


def partition_nmi(labels: Tensor, clusters: Tensor) -> Tensor:
    """Normalised mutual information between two partitions (N,) of N items; 1 if both have one part only.

    >>> partition_nmi(torch.tensor([1, 1, 2, 2]), torch.tensor([0, 0, 0, 1]))
    tensor(0.3437)
    """
    if len(torch.unique(labels)) == len(torch.unique(clusters)) == 1:
        return torch.tensor(1.0)  # torchmetrics gives 0
    # newer torch warns unless invariant checks are enabled or disabled explicitly
    with torch.sparse.check_sparse_tensor_invariants():  # type: ignore[no-untyped-call]  # torch has no types here
        return normalized_mutual_info_score(clusters, labels)
