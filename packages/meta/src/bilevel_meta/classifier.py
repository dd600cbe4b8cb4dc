"""What a learner became on labelled images: a classifier of one task, or of many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
import torch
from torch import Tensor

from bilevel_models import as_images

__all__ = ["Classifier", "Fitted", "evaluating", "fitted"]

CHUNK = 64  # images classified at once, so that memory does not grow with their number


class Classifier(Protocol):
    """What became of the support images of a meta-batch: one classifier an episode."""

    def logits(self, images: Tensor) -> Tensor:
        """Return (episodes, n, way) of images (episodes, n, channels, height, width)."""
        ...


class Adapting(Protocol):
    """What of a `Learner` makes a classifier; contracts point down, so that it is said here."""

    training: bool

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    def adapt(self, support: Tensor, labels: Tensor, way: int) -> Classifier:
        """Return a classifier an episode."""
        ...

    def train(self, mode: bool = ...) -> object:
        """Take the mode of training, or of test."""
        ...


@contextmanager
def evaluating(model: Adapting) -> Iterator[None]:
    """Put a model into the mode of test, without gradients, and back."""
    before = model.training
    model.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(before)


@final
@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A classifier of one task.

    Attributes:
        learner: what it came from; changing λ afterwards does not change it where heads alone
            adapt, but for the backbone that they stand on.
        classifier: of one episode.
        classes: the names of its outputs, sorted.
    """

    learner: Adapting
    classifier: Classifier
    classes: tuple[str | int, ...]

    def predict(self, images: object) -> list[str | int]:
        """Return the most probable class of each image."""
        return [self.classes[k] for k in self.probabilities(images).argmax(dim=1).tolist()]

    def probabilities(self, images: object) -> Tensor:
        """Return (n, classes) of images as `Learner.fit` takes them.

        Cost: a forward pass over the images.
        """
        given = _as_tensor(images, self.learner.device)
        with evaluating(self.learner):
            parts = [self.classifier.logits(part[None])[0] for part in torch.split(given, CHUNK)]
        return torch.cat(parts).softmax(dim=1)


def fitted(learner: Adapting, images: object, labels: object) -> Fitted:
    """Return what `Learner.fit` does."""
    given = _as_tensor(images, learner.device)
    names = np.asarray(labels).tolist()  # plain numbers and words, whatever they came in
    if len(names) != len(given):
        raise ValueError(f"{len(given)} images and {len(names)} labels: give one for each image")
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        raise ValueError(f"one class alone, {names[:1]}: give images of two classes or more")
    number = {name: k for k, name in enumerate(classes)}
    targets = torch.tensor([[number[name] for name in names]], device=learner.device)
    with evaluating(learner):
        classifier = learner.adapt(given[None], targets, len(classes))
    return Fitted(learner=learner, classifier=classifier, classes=classes)


def _as_tensor(images: object, device: torch.device) -> Tensor:
    """Return images (n, channels, height, width) in [0, 1]."""
    if isinstance(images, Tensor) and images.is_floating_point():
        found = images.to(device)
    else:
        pixels = np.asarray(images)
        if pixels.dtype != np.uint8:
            raise ValueError(f"pixels of {pixels.dtype}: give uint8, or a float tensor in [0, 1]")
        pixels = np.require(pixels, requirements="W")  # torch warns of what is read-only
        found = as_images(pixels[..., None] if pixels.ndim == 3 else pixels, device)
    if found.ndim != 4:
        raise ValueError(
            f"images of shape {tuple(found.shape)}: give tensors (n, channels, height, width), or "
            "pixels (n, height, width) or (n, height, width, channels)"
        )
    return found
