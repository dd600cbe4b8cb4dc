"""What methods share that train one classifier of all training classes, without episodes."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Unpack

from torch import Tensor, nn
from torch.nn import functional

from bilevel_meta.diet import Diet
from bilevel_meta.learner import Encoding, HeadLearner

if TYPE_CHECKING:
    from bilevel_meta.episodes import Batch

__all__ = ["Pretrained"]


class Pretrained(HeadLearner):
    """A backbone trained by cross-entropy over all training classes.

    -log softmax(o(h(x)))_c, where o gives one output a training class and c is the image's class
    among them. Episodes only say which images there are. λ is the backbone and o; the inner problem
    comes after training, and no derivative goes through it.

    Args:
        backbone: h.
        classes: training classes, rotated copies of one counted as classes of their own.
        encoding: as of `HeadLearner`.
    """

    diet = Diet(way=16, shot=1, query=3, episodes=4)

    def __init__(
        self, backbone: nn.Module | str, *, classes: int, **encoding: Unpack[Encoding]
    ) -> None:
        super().__init__(backbone, **encoding)
        self.classes = classes

    @abstractmethod
    def outputs(self, features: Tensor) -> Tensor:
        """Return o, (episodes, n, classes), of features (episodes, n, dim)."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over support and query images."""
        episodes = self.take(batch)
        if episodes.classes is None:
            raise ValueError(
                "the episodes do not say which classes they have: give Episodes.classes"
            )
        images = episodes.united()
        (features,) = self.encoder(images.support, training=self.training)
        self.follow(features.detach())
        labels = episodes.classes.gather(1, images.support_labels).flatten()
        scores = self.outputs(features).flatten(0, 1)
        return functional.cross_entropy(scores, labels, label_smoothing=self.label_smoothing)

    def follow(self, features: Tensor) -> None:
        """Take notice of the features of training."""
