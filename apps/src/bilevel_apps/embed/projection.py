"""Two dimensions for the eye: principal components, or t-SNE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Projection", "principal_components", "tsne"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """Where images lie on a map.

    Attributes:
        name: of the method.
        points: (n, 2).
        axes: what the two axes are, or empty where they mean nothing.
    """

    name: str
    points: NDArray[np.float64]
    axes: tuple[str, str] = ("", "")


def principal_components(features: NDArray[np.float32]) -> Projection:
    """Return the two directions in which the features (n, dim) vary most."""
    from sklearn.decomposition import PCA  # type: ignore[import-untyped]

    found = PCA(n_components=2, svd_solver="full")
    points = found.fit_transform(features.astype(np.float64))
    share = np.nan_to_num(found.explained_variance_ratio_)
    first, second = (f"component {k + 1}: {share[k]:.0%} of the variance" for k in (0, 1))
    return Projection(name="PCA", points=points, axes=(first, second))


def tsne(features: NDArray[np.float32], *, seed: int) -> Projection:
    """Return a map (n, 2) that keeps neighbours together and says nothing of far distances.

    Source: Visualizing data using t-SNE (van der Maaten and Hinton, 2008).
    """
    from sklearn.manifold import TSNE  # type: ignore[import-untyped]

    perplexity = min(30.0, (len(features) - 1) / 3)
    # For some hundred points the exact method is quicker than the approximate one.
    found = TSNE(perplexity=perplexity, init="pca", method="exact", random_state=seed)
    points = found.fit_transform(features.astype(np.float64))
    return Projection(name="t-SNE", points=points.astype(np.float64))
