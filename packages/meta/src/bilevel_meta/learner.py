"""The contract of a meta-learning method; no method lives here.

    Learner      a module whose parameters are λ; `adapt` turns support images into a classifier
    Classifier   what one episode's images became: `logits` of other images
    HeadLearner  a learner whose inner problem lives on features, each image encoded once

A method of one's own implements `adapt`, or, on `HeadLearner`, `fit_head`. It inherits the loss,
which is ordinary autograd: `learner.loss(batch).backward()`. One with a training signal of its own
implements `loss`, or `losses` where a meta-batch is worth several outer steps.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, Self, TypedDict, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bilevel_meta.classifier import Classifier, Fitted, evaluating, fitted
from bilevel_meta.diet import Diet
from bilevel_meta.episodes import Batch, Episodes, as_episodes
from bilevel_meta.weights import load_weights, save_weights
from bilevel_models import Encoder, Normalization, create_model, heads

__all__ = [
    "Classifier",
    "Encoding",
    "FeatureHead",
    "HeadLearner",
    "Learner",
    "head_logits",
    "named_backbone",
]


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
        normalization: whose statistics normalise an episode's images.
        label_smoothing: ε of the default loss.
        accuracy: mean accuracy on the images that the last loss judged, for a log; None where the
            method's loss is not one of classification.
    """

    diet: ClassVar[Diet] = Diet()
    allowed: ClassVar[frozenset[Normalization]] = frozenset(Normalization)
    normalization: Normalization
    label_smoothing: float = 0.0
    accuracy: Tensor | None = None

    @abstractmethod
    def adapt(self, support: Tensor, labels: Tensor, way: int) -> Classifier:
        """Return a classifier an episode; ordinary autograd differentiates its logits in λ.

        Args:
            support: images (episodes, n, channels, height, width) in [0, 1].
            labels: classes 0 … way-1, int64 (episodes, n).
            way: classes an episode.
        """

    def scores(self, batch: Batch) -> Tensor:
        """Return the logits of the query images, (episodes, way*query, way), in the mode it is in.

        Override it where support and query images are better passed together.
        """
        episodes = self.take(batch)
        classifier = self.adapt(episodes.support, episodes.support_labels, episodes.way)
        return classifier.logits(episodes.query)

    def loss(self, batch: Batch) -> Tensor:
        """Return E, the mean cross-entropy of the query images, as a scalar with its graph."""
        episodes = self.take(batch)
        return self.judge(self.scores(episodes), episodes.query_labels)

    def judge(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits (episodes, n, way); keep the accuracy."""
        self.accuracy = heads.accuracy(scores.detach(), labels).mean()
        smoothing = self.label_smoothing
        return functional.cross_entropy(
            scores.flatten(0, 1), labels.flatten(), label_smoothing=smoothing
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss, so that wrappers such as `DistributedDataParallel` see it."""
        return self.loss(batch)

    def take(self, batch: Batch) -> Episodes:
        """Return a meta-batch on the learner's device; sampled pixels become images there."""
        return as_episodes(batch, self.device)

    @property
    def device(self) -> torch.device:
        """Where λ is."""
        return next(self.parameters()).device

    def fit(self, images: object, labels: object) -> Fitted:
        """Return a classifier of one task: `learner.fit(images, labels).predict(others)`.

        Args:
            images: of any number a class: a float tensor (n, channels, height, width) in [0, 1],
                or pixels (n, height, width[, channels]), uint8.
            labels: their names or numbers, as many: a list, an array or a tensor.

        Raises:
            ValueError: fewer than two classes, or another number of labels than of images.
        """
        return fitted(self, images, labels)

    def save(self, path: str | Path) -> None:
        """Write λ to a safetensors file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        save_weights(self, Path(path))

    def load(self, path: str | Path) -> None:
        """Take λ from a file of `save`, or the weights that score best from a run's checkpoint.

        Raises:
            ValueError: no safetensors file, or the weights of another learner.
        """
        load_weights(self, Path(path))

    def losses(self, batch: Batch) -> Iterator[Tensor]:
        """Yield what a hyper-iteration back-propagates and steps on, one after the other.

        A generator: whoever iterates takes an outer step on each loss before asking for the next.
        It yields as many times for any meta-batch, so that processes that share one agree.
        """
        yield self.loss(batch)

    @torch.no_grad()
    def accuracies(self, batch: Batch) -> Tensor:
        """Return the fraction of query images classified right, one an episode, (batch,).

        Raises:
            bilevel_core.DivergenceError: the inner runs diverge.
        """
        episodes = self.take(batch)
        with evaluating(self):
            return heads.accuracy(self.scores(episodes), episodes.query_labels)

    def varied(self, *, normalization: Normalization) -> Self:
        """Return a learner of the same λ, which both share, with other statistics.

        Raises:
            ValueError: they do not suit the method.
        """
        self.check_statistics(normalization)
        other = copy.copy(self)
        other.normalization = normalization
        return other

    def check_statistics(self, normalization: Normalization) -> None:
        """Refuse a normalisation that does not suit the method.

        Raises:
            ValueError: it does not.
        """
        if normalization not in self.allowed:
            raise ValueError(
                f"{type(self).__name__} cannot use norm={normalization.value!r}: choose "
                f"{' or '.join(sorted(mode.value for mode in self.allowed))}"
            )


class Encoding(TypedDict, total=False):
    """The arguments of a `HeadLearner` that its methods hand on."""

    image_shape: Sequence[int] | None
    norm: Normalization | str
    unit_length: bool
    bfloat16: bool


class HeadLearner(Learner):
    """A learner that trains heads on features: every image passes the backbone once.

    Args:
        backbone: h, images (n, channels, height, width) to features (n, dim); or its name, one of
            `bilevel_models.list_models()`.
        image_shape: (height, width, channels), where the backbone is named.
        norm: whose statistics normalise an episode's images.
        unit_length: divide each feature vector by its Euclidean norm.
        bfloat16: run convolutions in bfloat16 autocast.

    Raises:
        ValueError: a normalisation that does not suit the method, or a backbone with layers that
            normalise or drop by themselves.

    Cost: of a loss and its gradient, the backbone's pass over the images, and the heads.
    """

    def __init__(
        self,
        backbone: nn.Module | str,
        *,
        image_shape: Sequence[int] | None = None,
        norm: Normalization | str = Normalization.GHOST,
        unit_length: bool = False,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.normalization = Normalization(norm)
        self.check_statistics(self.normalization)
        self.backbone = named_backbone(backbone, image_shape)
        self.dim = cast("int", self.backbone.dim)
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

    def behind(self, backbone: nn.Module) -> Self:
        """Return a learner of the same λ, which both share, but for another backbone.

        Args:
            backbone: of as many features.
        """
        other = copy.copy(self)
        # A copy of a module shares the table of its parts: without one of its own, both change.
        other._modules = {**self._modules, "backbone": backbone}
        return other

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

    def scores(self, batch: Batch) -> Tensor:
        """Return the logits of the query images, each image encoded once."""
        episodes = self.take(batch)
        encode, training = self.encoder, self.training
        support, query = encode(episodes.support, episodes.query, training=training)
        return head_logits(self.fit_head(support, episodes.support_labels, episodes.way), query)


def named_backbone(backbone: nn.Module | str, image_shape: Sequence[int] | None) -> nn.Module:
    """Return a module as it is, and a new backbone for a name.

    Raises:
        ValueError: a name without an image shape, or images that are not square.
    """
    if isinstance(backbone, nn.Module):
        return backbone
    if image_shape is None:
        raise ValueError(f"backbone={backbone!r}: give image_shape too, (height, width, channels)")
    height, width, channels = image_shape
    if height != width:
        raise ValueError(f"image_shape={tuple(image_shape)}: the named backbones take squares")
    return create_model(backbone, channels=channels, image_size=height)


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
