"""How well clusters of the embeddings agree with the classes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_recall.metrics.retrieval_scores import check_batch, first_of_each


class ClusterNMI(Metric):
    """Normalised mutual information of the classes and as many k-means clusters of the embeddings.

    I(classes; clusters) over the mean of their entropies: 1 if they are the same partition, near 0 if they are
    unrelated, though many small clusters score well by chance. Needs scikit-learn: `pip install lightning-recall[nmi]`.
    k-means starts once, from random embeddings, as is usual in this field: k-means++ would take hours for SOP's 11,316
    classes.

    Source: Manning, Raghavan and Schuetze, "Introduction to Information Retrieval", section 16.3.

    Args:
        normalize: whether to scale embeddings to unit length.
        ignore_index: items with this label are left out; None: there are none.
        max_iter: k-means steps at most.
        seed: of the first centres.
        kwargs: for `torchmetrics.Metric`.

    Shapes: `update` takes embeddings (B, D), labels (B,) and, optionally, the indices (B,) of the items, of which each
    counts once; `compute` gives {"nmi": scalar in [0, 1]}.

    Raises:
        ImportError: without scikit-learn.
        ValueError: for embeddings and labels that do not fit or are not finite, and from `compute` without any.

    >>> import torch
    >>> metric = ClusterNMI()
    >>> metric.update(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]), torch.tensor([3, 3, 4, 4]))
    >>> metric.compute()
    {'nmi': tensor(1.)}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    embeddings: list[Tensor]
    labels: list[Tensor]
    indices: list[Tensor]

    def __init__(
        self,
        normalize: bool = True,
        ignore_index: int | None = None,
        max_iter: int = 20,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        try:
            import sklearn.cluster  # noqa: F401  # an optional extra, asked for before anything is embedded
        except ImportError as error:
            raise ImportError("ClusterNMI needs scikit-learn: pip install lightning-recall[nmi]") from error
        self.normalize = normalize
        self.ignore_index = ignore_index
        self.max_iter = max_iter
        self.seed = seed
        for name in ("embeddings", "labels", "indices"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, labels: Tensor, indices: Tensor | None = None) -> None:
        """Adds a batch: embeddings (B, D), labels (B,) and, if known, the indices (B,) of the items."""
        check_batch(embeddings, labels)
        kept = labels == labels if self.ignore_index is None else labels != self.ignore_index  # (B,)
        if not torch.isfinite(embeddings[kept]).all():
            raise ValueError("embeddings hold NaN or infinity: the network has diverged or its input is broken.")
        self.embeddings.append(embeddings.detach()[kept])
        self.labels.append(labels[kept].long())
        if indices is not None:
            self.indices.append(indices.to(labels.device)[kept].long())

    def compute(self) -> dict[str, Tensor]:
        """NMI over all that was added."""
        from sklearn.cluster import KMeans
        from sklearn.metrics import normalized_mutual_info_score

        if len(self.embeddings) == 0 or sum(map(len, self.labels)) == 0:
            raise ValueError("Scores of nothing: no batch was added with update().")
        embeddings, labels = dim_zero_cat(self.embeddings).float(), dim_zero_cat(self.labels)
        if len(self.indices) > 0:
            once = first_of_each(dim_zero_cat(self.indices))
            embeddings, labels = embeddings[once], labels[once]
        embeddings = F.normalize(embeddings, dim=1) if self.normalize else embeddings
        num_classes = len(torch.unique(labels))
        means = KMeans(num_classes, init="random", n_init=1, max_iter=self.max_iter, random_state=self.seed)
        clusters = means.fit_predict(embeddings.cpu().numpy())
        nmi = normalized_mutual_info_score(labels.cpu().numpy(), clusters)
        return {"nmi": torch.tensor(nmi, dtype=torch.float32, device=labels.device)}
