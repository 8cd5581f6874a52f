"""How well clusters of the embeddings agree with the classes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_recall.metrics.states import add_states, append_rows, complete_states, gathered_rows, restore_columns
from lightning_recall.search.inputs import check_batch, check_finite, check_integers, check_same_columns


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
    plot_lower_bound, plot_upper_bound = 0.0, 1.0
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
        add_states(self, "labels", "indices")

    def update(self, embeddings: Tensor, labels: Tensor, indices: Tensor | None = None) -> None:
        """Adds a batch: embeddings (B, D), labels (B,) and, if known, the indices (B,) of the items."""
        check_batch(embeddings, labels)
        check_integers(len(labels), indices=indices)
        check_same_columns({"indices": self.indices}, {"indices": indices}, first=len(self.labels) == 0)
        classes = labels.to(embeddings.device, torch.int64)
        check_finite(embeddings if self.ignore_index is None else embeddings[classes != self.ignore_index])
        append_rows(self, embeddings, labels=classes, indices=indices)

    def compute(self) -> dict[str, Tensor]:
        """NMI over all that was added."""
        from sklearn.cluster import KMeans
        from sklearn.metrics import normalized_mutual_info_score

        known = gathered_rows(self, self.ignore_index)
        embeddings, labels = known["embeddings"].float(), known["labels"]
        if len(labels) == 0:
            raise ValueError("Scores of nothing: no item was added with update().")
        embeddings = F.normalize(embeddings, dim=1) if self.normalize else embeddings
        num_classes = len(torch.unique(labels))
        means = KMeans(num_classes, init="random", n_init=1, max_iter=self.max_iter, random_state=self.seed)
        clusters = means.fit_predict(embeddings.cpu().numpy())
        nmi = normalized_mutual_info_score(labels.cpu().numpy(), clusters)
        return {"nmi": torch.tensor(nmi, dtype=torch.float32, device=labels.device)}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Figure and axes of one value, of several in order, or of what was added; needs matplotlib."""
        return self._plot(val, ax)

    def set_dtype(self, dst_type: str | torch.dtype) -> "ClusterNMI":
        """Changes the type of the embeddings, and of nothing else."""
        restore_columns(self, partial(super().set_dtype, dst_type))
        return self

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any = None) -> None:
        complete_states(self, dist_sync_fn, process_group or self.process_group)
        super()._sync_dist(dist_sync_fn, process_group)
