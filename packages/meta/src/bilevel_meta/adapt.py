"""A head for a handful of labelled images, and what it says of others, one or many.

What evaluation does with sampled episodes, for images that a person brings: any number of classes,
of images a class and of queries. Always inductive: a query's answer is the same alone and among
others.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from bilevel_meta.classifier import Classifier, evaluating
from bilevel_meta.learner import Learner
from bilevel_meta.methods.hyper_representation import HyperRepresentation
from bilevel_models import Encoder, Normalization, heads

__all__ = [
    "FewShotHead",
    "FewShotLearner",
    "far_from",
    "learner_of",
    "representation_learner",
]

FAR = 3.5  # deserves a warning; of 100 tasks of images like those of training, one has 3
SETTLED = 100  # hyper-iterations
CHUNK = 64  # queries encoded at once, so that memory does not grow with their number


@final
@dataclass(frozen=True, kw_only=True)
class FewShotLearner:
    """A representation, and how heads are trained on it.

    Attributes:
        encoder: inductive, and in the precision of its weights: a query's features are its own.
        steps: T, inner steps; None solves for the optimum.
        step_size: η.
        scale: s, the factor on the features.
        solver: what fits heads to their optimum; None where nothing but T steps is known.
    """

    encoder: Encoder
    steps: int | None
    step_size: float
    scale: float
    solver: heads.HeadSolver | None = None

    def adapt(self, images: Tensor, labels: Tensor, classes: int) -> FewShotHead:
        """Return the head of labelled images, at its optimum or after T steps.

        Args:
            images: (n, channels, height, width) in [0, 1], on the representation's device.
            labels: 0 … classes-1, int64 (n,); each class has one image or more.
            classes: how many.

        Raises:
            bilevel_models.heads.HeadDivergenceError: the training diverges.

        Cost: a forward pass over the images, and the head on their Gram matrix.

        Source: Bilevel Programming for Hyperparameter Optimization and Meta-Learning (Franceschi et
        al., 2018), Eq. 10.
        """
        h, _ = self.features(images, images[:1])
        with torch.no_grad():
            targets = heads.one_hot(labels[None], classes, h)
            head = self._fit(h[None], targets)
            surprise = None if self.solver is None else self.solver.surprise(h[None], targets)
        own = self.encoder.normalization is Normalization.SUPPORT
        return FewShotHead(
            learner=self,
            head=head,
            reference=images if own else images[:1],
            surprise=None if surprise is None else float(surprise),
        )

    def _fit(self, features: Tensor, targets: Tensor) -> heads.Head:
        if self.steps is None:
            if self.solver is None:
                raise ValueError("these heads take T steps: give steps")
            return self.solver.fit(features, targets)
        return heads.descend(
            features,
            targets,
            steps=self.steps,
            step_size=self.step_size,
            scale=self.scale,
        )

    def features(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return (n, dim) and (m, dim) of images (n, …) and (m, …).

        In float64 from here on: a fit on images that look alike to the representation magnifies
        rounding, and this one is small.
        """
        dtype = next(self.encoder.backbone.parameters()).dtype
        s, q = support[None].to(dtype), query[None].to(dtype)
        with torch.no_grad():
            h_s, h_q = self.encoder(s, q, training=False)
        return h_s[0].double(), h_q[0].double()


@final
@dataclass(frozen=True, kw_only=True)
class FewShotHead:
    """A trained head.

    Attributes:
        learner: what trained it.
        head: weights and bias.
        reference: images whose statistics normalise the queries; where running averages do, one
            image for company, as episodes have support and query images.
        surprise: how far its images are from those of the training, about 1 among those; None where
            nothing is known of them.
    """

    learner: FewShotLearner
    head: heads.Head
    reference: Tensor
    surprise: float | None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.head["bias"].device

    def probabilities(self, images: Tensor) -> Tensor:
        """Return softmax(s h W + b), float64 (m, classes), of images (m, …), m ≥ 1.

        Cost: a forward pass over the images, and over the reference once every `CHUNK` of them.
        """
        chunks = torch.split(images, CHUNK)
        return torch.cat([self._scores(chunk) for chunk in chunks]).softmax(dim=-1)

    def _scores(self, images: Tensor) -> Tensor:
        _, h = self.learner.features(self.reference, images)
        return heads.logits(self.head, h[None])[0]


def far_from(surprise: float | None, weights: str, step: int) -> str | None:
    """Return a line of warning where images are unlike those that weights learned from.

    Args:
        surprise: how unlike they are.
        weights: their name.
        step: hyper-iterations of their training; after a few, nothing is typical yet.
    """
    if surprise is None or surprise < FAR or step < SETTLED:
        return None
    return (
        f"{weights}: these pictures are unlike those that the weights learned from (their mean is "
        f"{surprise**0.5:.1f} times as far from theirs as chance explains): check a few answers, "
        "or train on pictures of the kind"
    )


@final
@dataclass(frozen=True, kw_only=True)
class OtherLearner:
    """A learner that adapts in a way of its own, in the mode of test and without gradients.

    Attributes:
        learner: inductive where its method can be.
    """

    learner: Learner

    def adapt(self, images: Tensor, labels: Tensor, classes: int) -> OtherClassifier:
        """Return what it becomes on labelled images; arguments as of `FewShotLearner.adapt`.

        Raises:
            ValueError: a number of classes or of images that the method was not made for.
            bilevel_core.DivergenceError: the inner run diverges.
        """
        with evaluating(self.learner):
            found = self.learner.adapt(images[None], labels[None], classes)
        return OtherClassifier(learner=self.learner, classifier=found)


@final
@dataclass(frozen=True, kw_only=True)
class OtherClassifier:
    """A learner's classifier of one task.

    Attributes:
        learner: what it came from.
        classifier: of one episode.
    """

    learner: Learner
    classifier: Classifier
    surprise: float | None = None  # what is typical is not known

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.learner.device

    def probabilities(self, images: Tensor) -> Tensor:
        """Return float64 (m, classes) of images (m, …), m ≥ 1.

        Cost: a forward pass over the images.
        """
        with evaluating(self.learner):
            parts = [self.classifier.logits(part[None])[0] for part in torch.split(images, CHUNK)]
        return torch.cat(parts).double().softmax(dim=-1)


def learner_of(task: Learner) -> FewShotLearner | OtherLearner:
    """Return what adapts to images as a task does, made inductive where it can be."""
    if isinstance(task, HyperRepresentation):
        return representation_learner(task)
    inductive, learner = Normalization.SUPPORT, deepcopy(task)
    if not task.normalization.inductive and inductive in task.allowed:
        learner = learner.varied(normalization=inductive)
    return OtherLearner(learner=learner)


def representation_learner(task: HyperRepresentation) -> FewShotLearner:
    """Return what trains heads as a task does, made inductive.

    With `episode` normalisation queries take the statistics of the support images, which the heads
    were trained with, in place of those of all queries together. Convolutions run in float32, and
    on a GPU in float64: otherwise an image's features may depend on how many are encoded with it.
    """
    own, backbone = task.encoder.normalization, deepcopy(task.encoder.backbone)
    # In plain order, as an exported program has its weights: other kernels round otherwise.
    backbone.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if task.log_lr.is_cuda:  # kernels are chosen by the number of images, and may be TF32
        backbone.double()
    encoder = replace(
        task.encoder,
        backbone=backbone,
        normalization=own if own.inductive else Normalization.SUPPORT,
        bfloat16=False,
    )
    return FewShotLearner(
        encoder=encoder,
        steps=task.steps,
        step_size=float(task.log_lr.detach().exp()),
        scale=float(task.log_scale.detach().exp()),
        solver=deepcopy(task.solver),
    )
