"""How far apart the classes of some images are, as three figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Separation", "separation"]


@final
@dataclass(frozen=True, kw_only=True)
class Separation:
    """Figures of a representation's classes; higher is better.

    Attributes:
        silhouette: in [-1, 1]; above 0 where images are nearer to their own class than to the next.
        centroid_accuracy: share of images nearest to the mean of the others of their class.
        neighbour_accuracy: share of images whose nearest other image is of their class.
    """

    silhouette: float
    centroid_accuracy: float
    neighbour_accuracy: float

    def named(self) -> dict[str, float]:
        """Return the figures by name."""
        return asdict(self)


def separation(vectors: NDArray[np.floating], labels: NDArray[np.int64]) -> Separation:
    """Return the figures of vectors in Euclidean distance.

    An image x of a class of n with mean μ is compared with the mean of the n - 1 others, whose
    distance is n/(n-1)·‖x - μ‖.

    Args:
        vectors: (n, dim).
        labels: (n,), at least two classes of at least two images.

    Cost: n² distances.

    Source: Silhouettes: a graphical aid to the interpretation and validation of cluster analysis
    (Rousseeuw, 1987).
    """
    from sklearn.metrics import silhouette_score  # type: ignore[import-untyped]
    from sklearn.metrics.pairwise import euclidean_distances  # type: ignore[import-untyped]

    distances = euclidean_distances(vectors)
    silhouette = float(silhouette_score(distances, labels, metric="precomputed"))
    np.fill_diagonal(distances, np.inf)
    neighbour = labels[distances.argmin(axis=1)]
    names, which, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.stack([vectors[labels == name].mean(axis=0) for name in names])
    to_means = euclidean_distances(vectors, means)
    own = sizes[which]
    to_means[np.arange(len(labels)), which] *= own / (own - 1)
    return Separation(
        silhouette=silhouette,
        centroid_accuracy=float((to_means.argmin(axis=1) == which).mean()),
        neighbour_accuracy=float((neighbour == labels).mean()),
    )
