"""Prototypical networks: the nearest class mean."""

from __future__ import annotations

from typing import final

from torch import Tensor

from bilevel_meta.class_means import nearest_mean
from bilevel_meta.diet import Diet
from bilevel_meta.learner import HeadLearner
from bilevel_models import heads

__all__ = ["Prototypical"]


@final
class Prototypical(HeadLearner):
    """Logits -‖h(x) - c_k‖², with c_k the mean of class k's support features.

    In bilevel words: λ is the backbone, w are the centroids, L is the scatter within the classes,
    which c_k minimises in closed form. Up to a number that all classes share, the logits are those
    of the linear head W = 2 c, b = -‖c‖². Training has many more classes an episode than the test.

    Source: Prototypical Networks for Few-shot Learning (Snell, Swersky, Zemel, 2017), Eqs. 1 and 2.
    """

    diet = Diet(way=60, shot=1, query=5, episodes=1)

    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> heads.Head:
        """Return the head of the class means."""
        return nearest_mean(features, labels, way)
