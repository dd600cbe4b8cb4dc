"""The backbone of features that were computed before: it hands on what it is given."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from bilevel_models.normalization import EACH_SET, Statistics

__all__ = ["Precomputed"]


@final
class Precomputed(nn.Module):
    """h(x) = x: vectors (n, dim, 1, 1) become features (n, dim). Nothing of it is learned.

    Args:
        dim: of the vectors.

    Raises:
        ValueError: dim < 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim={dim}: a feature vector has one number or more")
        self.dim = dim

    def forward(self, images: Tensor, statistics: Statistics = EACH_SET) -> Tensor:
        """Return the vectors, whatever the statistics.

        Raises:
            ValueError: they have another shape.
        """
        del statistics
        if images.shape[1:] != (self.dim, 1, 1):
            raise ValueError(
                f"expected features (n, {self.dim}, 1, 1), found {tuple(images.shape)}: give those "
                "of a store that `bilevel-data features` made"
            )
        return images.flatten(1)
