"""The contract of a meta-learning method; no method lives here.

    Learner      a module whose parameters are λ; `adapt` turns support images into a classifier
    Classifier   what one episode's images became: `logits` of other images
    HeadLearner  a learner whose inner problem lives on features, each image encoded once

A method of one's own implements `adapt`, or, on `HeadLearner`, `fit_head`. It inherits the loss,
which is ordinary autograd: `learner.loss(episodes).backward()`. One with a training signal of its
own implements `loss`, or `losses` where a meta-batch is worth several outer steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypedDict, cast, final

from torch import Tensor, nn
from torch.nn import functional

from bilevel_meta.diet import Diet
from bilevel_models import Encoder, Normalization, heads

if TYPE_CHECKING:
    from bilevel_meta.episodes import Episodes

__all__ = ["Classifier", "Encoding", "FeatureHead", "HeadLearner", "Learner", "head_logits"]


class Classifier(Protocol):
    """What became of the support images of a meta-batch: one classifier an episode."""

    def logits(self, images: Tensor) -> Tensor:
        """Return (episodes, n, way) of images (episodes, n, channels, height, width)."""
        ...


class FeatureHead(Protocol):
    """A classifier of features, for heads that are not linear."""

    def logits(self, features: Tensor) -> Tensor:
        """Return (episodes, n, way) of features (episodes, n, dim)."""
        ...


def head_logits(head: heads.Head | FeatureHead, features: Tensor) -> Tensor:
    """Return the logits (episodes, n, way) of features (episodes, n, dim) by either kind."""
    return heads.logits(head, features) if isinstance(head, dict) else head.logits(features)


class Learner(nn.Module, ABC):
    """λ: what is learned across episodes, and how it learns an episode.

    Its mode is torch's: after `train()` its loss may use and track the statistics of training,
    after `eval()` it uses those of test. `adapt` is pure in either mode: it changes no parameter,
    no buffer and no random state, and always normalises as in test.

    Attributes:
        diet: the episodes of its paper's training, as a default.
        allowed: the normalisations with which the method makes sense.
        label_smoothing: ε of the default loss.
    """

    diet: ClassVar[Diet] = Diet()
    allowed: ClassVar[frozenset[Normalization]] = frozenset(Normalization)
    label_smoothing: float = 0.0

    @abstractmethod
    def adapt(self, support: Tensor, labels: Tensor, way: int) -> Classifier:
        """Return a classifier an episode; ordinary autograd differentiates its logits in λ.

        Args:
            support: images (episodes, n, channels, height, width) in [0, 1].
            labels: classes 0 … way-1, int64 (episodes, n).
            way: classes an episode.
        """

    def scores(self, episodes: Episodes) -> Tensor:
        """Return the logits of the query images, (episodes, way*query, way), in the mode it is in.

        Override it where support and query images are better passed together.
        """
        classifier = self.adapt(episodes.support, episodes.support_labels, episodes.way)
        return classifier.logits(episodes.query)

    def loss(self, episodes: Episodes) -> Tensor:
        """Return E, the mean cross-entropy of the query images, as a scalar with its graph."""
        scores = self.scores(episodes)
        labels, smoothing = episodes.query_labels.flatten(), self.label_smoothing
        return functional.cross_entropy(scores.flatten(0, 1), labels, label_smoothing=smoothing)

    def losses(self, episodes: Episodes) -> Iterator[Tensor]:
        """Yield what a hyper-iteration back-propagates and steps on, one after the other.

        A generator: whoever iterates takes an outer step on each loss before asking for the next.
        It yields as many times for any meta-batch, so that processes that share one agree.
        """
        yield self.loss(episodes)

    def check_statistics(self, normalization: Normalization) -> None:
        """Refuse a normalisation that does not suit the method.

        Raises:
            ValueError: it does not.
        """
        if normalization not in self.allowed:
            raise ValueError(
                f"{type(self).__name__} cannot use normalization={normalization.value!r}: choose "
                f"{' or '.join(sorted(mode.value for mode in self.allowed))}"
            )


class Encoding(TypedDict, total=False):
    """The arguments of a `HeadLearner` that its methods hand on."""

    normalization: Normalization
    unit_length: bool
    bfloat16: bool


class HeadLearner(Learner):
    """A learner that trains heads on features: every image passes the backbone once.

    Args:
        backbone: h, images (n, channels, height, width) to features (n, dim).
        normalization: whose statistics normalise an episode's images.
        unit_length: divide each feature vector by its Euclidean norm.
        bfloat16: run convolutions in bfloat16 autocast.

    Raises:
        ValueError: a normalisation that does not suit the method, or a backbone with layers that
            normalise or drop by themselves.

    Cost: of a loss and its gradient, the backbone's pass over the images, and the heads.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        normalization: Normalization = Normalization.GHOST,
        unit_length: bool = False,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.check_statistics(normalization)
        self.backbone, self.normalization = backbone, normalization
        self.dim = cast("int", backbone.dim)
        self.unit_length, self.autocast = unit_length, bfloat16
        _ = self.encoder  # refuses now what it would refuse at the first image

    @property
    def encoder(self) -> Encoder:
        """The backbone with the choices that decide its features."""
        return Encoder(
            backbone=self.backbone,
            normalization=self.normalization,
            unit_length=self.unit_length,
            bfloat16=self.autocast,
        )

    @abstractmethod
    def fit_head(self, features: Tensor, labels: Tensor, way: int) -> heads.Head | FeatureHead:
        """Return one head an episode, linear (`heads.Head`) or of another kind.

        Args:
            features: of the support images, (episodes, n, dim).
            labels: classes 0 … way-1, int64 (episodes, n).
            way: classes an episode.
        """

    def adapt(self, support: Tensor, labels: Tensor, way: int) -> Classifier:
        """Return the heads of the support images, behind the backbone."""
        encoder = self.encoder
        (features,) = encoder(support, training=False)
        head = self.fit_head(features, labels, way)
        by_support = self.normalization is Normalization.SUPPORT
        return _Encoded(encoder=encoder, head=head, reference=support if by_support else None)

    def scores(self, episodes: Episodes) -> Tensor:
        """Return the logits of the query images, each image encoded once."""
        encode, training = self.encoder, self.training
        support, query = encode(episodes.support, episodes.query, training=training)
        return head_logits(self.fit_head(support, episodes.support_labels, episodes.way), query)


@final
@dataclass(frozen=True, kw_only=True)
class _Encoded:
    """A head behind the backbone.

    Attributes:
        encoder: the backbone.
        head: of its features.
        reference: support images whose statistics normalise other images; None: no support image
            has a part in those.
    """

    encoder: Encoder
    head: heads.Head | FeatureHead
    reference: Tensor | None

    def logits(self, images: Tensor) -> Tensor:
        if self.reference is None:
            (features,) = self.encoder(images, training=False)
        else:
            _, features = self.encoder(self.reference, images, training=False)
        return head_logits(self.head, features)
