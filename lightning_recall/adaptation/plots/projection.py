"""Projects features to the plane, by t-SNE or by their principal components."""

from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Projection = Literal["auto", "tsne", "pca"]
PROJECTIONS: tuple[Projection, ...] = ("auto", "tsne", "pca")
TITLES = {"tsne": "t-SNE", "pca": "principal components"}
PERPLEXITY = 30  # scikit-learn's default
MIN_NEIGHBOURS = 3  # points for each unit of perplexity, as in scikit-learn's own neighbour search


def resolve_projection(projection: Projection) -> Literal["tsne", "pca"]:
    """The projection to use: "auto" is t-SNE if scikit-learn is installed, and otherwise principal components.

    Raises:
        ValueError: for another name.
        ImportError: for t-SNE without scikit-learn.
    """
    if projection not in PROJECTIONS:
        raise ValueError(f"projection must be one of {', '.join(PROJECTIONS)}, got {projection!r}.")
    has_sklearn = find_spec("sklearn") is not None
    if projection == "tsne" and not has_sklearn:
        raise ImportError('projection="tsne" needs scikit-learn: pip install "lightning-recall[nmi]"')
    return "tsne" if projection == "tsne" or (projection == "auto" and has_sklearn) else "pca"


def project(features: Tensor, projection: Literal["tsne", "pca"], seed: int = 0) -> NDArray[np.float64]:
    """Points (N, 2) of features (N, D); neither the global random states nor the features change.

    t-SNE starts from the principal components and has perplexity 30, or less for fewer than 90 images.

    Args:
        features: (N, D).
        projection: "tsne" or "pca".
        seed: seed of t-SNE.

    >>> project(torch.tensor([[4.0], [1.0], [1.0]]), "pca").round(3).tolist()
    [[2.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]
    """
    values = features.detach().cpu().double()
    if projection == "pca" or len(values) < 2 * MIN_NEIGHBOURS:
        return principal_components(values)
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, len(values) / MIN_NEIGHBOURS)
    init = principal_components(values)
    init = init / max(init[:, 0].std(), 1e-12) * 1e-4  # the scale that t-SNE starts from
    tsne = TSNE(perplexity=perplexity, init=init.astype(np.float32), random_state=seed)
    points: NDArray[np.float64] = tsne.fit_transform(values.float().numpy()).astype(np.float64)
    return points


def principal_components(features: Tensor) -> NDArray[np.float64]:
    """First two principal components (N, 2) of features (N, D); the largest coordinate of each is positive."""
    centred = features - features.mean(0)
    left, scales, _ = torch.linalg.svd(centred, full_matrices=False)
    points = (left * scales)[:, :2]
    largest = points.gather(0, points.abs().argmax(0, keepdim=True))
    points = points * torch.where(largest < 0, -1.0, 1.0)  # the sign is arbitrary
    return F.pad(points, (0, 2 - points.shape[1])).numpy()
