"""Base class of the losses that are functions of smooth ranks."""

from torch import Tensor

from lightning_recall.checks import check_above_zero
from lightning_recall.losses.base import RetrievalLoss, check_no_parameters
from lightning_recall.losses.heaviside import Sigmoid, SmoothHeaviside
from lightning_recall.losses.ranking import Objective, RankingConfig, rank_loss_of_checked_batch
from lightning_recall.virtual_pairs import VirtualPairs


class RankLoss(RetrievalLoss):
    """Base class of the losses that are functions of smooth ranks: the mean of an objective over the queries.

    A subclass sets `rank_temperature` and implements `objective(ranks, valid, similarities)`, which returns one value
    (q,) to be minimised for each of q queries:

    - `ranks`: (q, P) smooth rank of each positive, from 1;
    - `valid`: (q, P) bool, False where a query has fewer positives than P (padding);
    - `similarities`: (q, P) of the query and each positive, divided by `rank_temperature`.

    Every query has a positive. A query's value must depend only on its own row, since the number of queries per call
    varies. Autograd differentiates it with respect to `ranks` and `similarities` only; a loss with learned parameters
    must subclass `RetrievalLoss` instead. `compute` handles `queries` and `pairs`, and need not be overridden.

    A subclass may also set `count_query` and `ks`, and override `heaviside` to replace the sigmoid in the ranks.

    Attributes:
        rank_temperature: temperature of the comparison, above 0, in units of similarity.
        count_query: whether the query is included in its own ranking.
        ks: cut-offs of the diagnostics.
        diagnostics: exact "recall@k" within the last batch for each of `ks`, and, with gradients, "active_positives".

    >>> import torch
    >>> class MeanRankLoss(RankLoss):
    ...     rank_temperature = 0.05
    ...     def objective(self, ranks, valid, similarities):
    ...         return (ranks * valid).sum(1) / valid.sum(1)
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> round(MeanRankLoss()(embeddings, torch.tensor([0, 0, 1, 1])).item(), 4)
    1.4984
    """

    shares_queries = True
    accepts_virtual = True
    rank_temperature: float
    count_query: bool = False
    ks: tuple[int, ...] = (1,)
    objective: Objective

    def heaviside(self) -> SmoothHeaviside:
        """Returns the smooth comparison for the current settings; the sigmoid unless a subclass overrides this."""
        return Sigmoid()

    def compute(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """See `RetrievalLoss.forward`."""
        check_above_zero(rank_temperature=self.rank_temperature)
        check_no_parameters(self, "RankLoss")
        config = RankingConfig(self.objective, self.rank_temperature, self.heaviside(), self.count_query)
        result = rank_loss_of_checked_batch(embeddings, labels, config, queries, pairs)
        self.diagnostics = result.diagnostics(self.ks)
        return result.loss
